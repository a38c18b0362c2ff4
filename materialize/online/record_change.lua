-- Notes that rows of a fill have changed: a new version, and which rows, kept for the last versions only.
-- KEYS  the fill's changes, a hash        ARGV  a number below 2^53 to start from, versions kept, the changed ids
local versions = KEYS[1]
redis.call('HSETNX', versions, 'version', ARGV[1])
local version = redis.call('HINCRBY', versions, 'version', 1)
redis.call('HSET', versions, string.format('%.0f', version), ARGV[3])
redis.call('HDEL', versions, string.format('%.0f', version - tonumber(ARGV[2])))
return version
