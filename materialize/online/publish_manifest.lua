-- Sets an encoder's manifest if its generation is newer than the stored one, or the text is the same.
-- KEYS  manifest key        ARGV  JSON text, generation
-- Returns "stored", or "refused" and the stored generation.
local stored = redis.call('GET', KEYS[1])
if stored and stored ~= ARGV[1] then
  local generation = cjson.decode(stored)['generation']
  if generation >= tonumber(ARGV[2]) then
    return 'refused ' .. string.format('%d', generation)
  end
end
redis.call('SET', KEYS[1], ARGV[1])
return 'stored'
