-- Marks that the rows of a tick are here: only where the tick before it in its series still is, so that a server that
-- was emptied, or went back to an older state meanwhile, does not look whole.
-- KEYS  the marks of a view
-- ARGV  series, tick, the tick that should be there ('': nothing is known of it)
-- Returns 1, or 0 where something else is there, which stays.
local found = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local expected = found == ARGV[3] or found == ARGV[2]
if ARGV[3] == '' then
  expected = found == '' or tonumber(found) <= tonumber(ARGV[2])
end
if not expected then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
