-- Writes rows of one tick, each only if the stored tick is older: a retry or a slow worker changes nothing.
-- The whole call is atomic. Values stand feature by feature: #KEYS of the first, #KEYS of the second, ...
-- KEYS  entity keys
-- ARGV  tick, tick field, its value, timestamp field, its value, ttl in seconds or 0, number of features f,
--       f feature fields, f * #KEYS values
-- Returns the number of rows written.
local tick, tick_field, tick_value = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local time_field, time_value, ttl, features = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local first_value = 7 + features
local written = 0
for row = 1, #KEYS do
  local stored = redis.call('HGET', KEYS[row], tick_field)
  local older = not stored or tonumber(string.match(stored, '^-?%d+')) < tick
  if older then
    local pairs_ = {tick_field, tick_value, time_field, time_value}
    for feature = 1, features do
      pairs_[#pairs_ + 1] = ARGV[7 + feature]
      pairs_[#pairs_ + 1] = ARGV[first_value + (feature - 1) * #KEYS + row]
    end
    redis.call('HSET', KEYS[row], unpack(pairs_))
    if ttl > 0 then
      redis.call('EXPIRE', KEYS[row], ttl)
    end
    written = written + 1
  end
end
return written
