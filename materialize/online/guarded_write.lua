-- Writes rows of one tick, each only if the stored tick is older: a retry or a slow worker changes nothing.
-- The whole call is atomic. Values stand feature by feature: #KEYS of the first, #KEYS of the second, ...
-- KEYS  entity keys
-- ARGV  tick, stamp field, its value (guarded_write.py: the tick is the first half of its last 16 bytes),
--       number of features f, f feature fields, f * #KEYS values
-- Returns the number of rows written.
local call, unpacked, rows = redis.call, struct.unpack, #KEYS
local tick, stamp_field, stamp = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local features = tonumber(ARGV[4])
local first_field, first_value = ARGV[5], 4 + features
-- The features after the first; one table serves all rows, and only what differs between them is put into it.
local others = {}
for feature = 2, features do
  others[2 * feature - 3] = ARGV[4 + feature]
end
local written = 0
for row = 1, rows do
  local key = KEYS[row]
  local stored = call('HGET', key, stamp_field)
  -- A stamp that is shorter than any with a tick is stock Feast's, and older than every tick.
  if not stored or #stored < 18 or unpacked('>i8', stored, #stored - 15) < tick then
    for feature = 2, features do
      others[2 * feature - 2] = ARGV[first_value + (feature - 1) * rows + row]
    end
    call('HSET', key, stamp_field, stamp, first_field, ARGV[first_value + row], unpack(others))
    written = written + 1
  end
end
return written
