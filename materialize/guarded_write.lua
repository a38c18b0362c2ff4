-- Writes rows of one tick, each only if the stored tick is older: a retry or a slow worker changes nothing.
-- The whole call is atomic. Values stand feature by feature: #KEYS of the first, #KEYS of the second, ...
-- KEYS  entity keys
-- ARGV  tick, tick field, its value, timestamp field, its value, ttl in seconds or 0, number of features f,
--       f feature fields, f * #KEYS values
-- Returns the number of rows written.
local call, match, rows = redis.call, string.match, #KEYS
local tick, tick_field, tick_value = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local time_field, time_value = ARGV[4], ARGV[5]
local ttl, features = tonumber(ARGV[6]), tonumber(ARGV[7])
local first_field, first_value = ARGV[8], 7 + features
-- The features after the first; one table serves all rows, and only what differs between them is put into it.
local others = {}
for feature = 2, features do
  others[2 * feature - 3] = ARGV[7 + feature]
end
local written = 0
for row = 1, rows do
  local key = KEYS[row]
  local stored = call('HGET', key, tick_field)
  if not stored or tonumber(match(stored, '^-?%d+')) < tick then
    for feature = 2, features do
      others[2 * feature - 2] = ARGV[first_value + (feature - 1) * rows + row]
    end
    local first = ARGV[first_value + row]
    call('HSET', key, tick_field, tick_value, time_field, time_value, first_field, first, unpack(others))
    if ttl > 0 then
      call('EXPIRE', key, ttl)
    end
    written = written + 1
  end
end
return written
