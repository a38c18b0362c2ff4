-- Delivers what is new in some partitions to their reader: whoever opened a partition last. Another worker, which lost
-- its lane and does not know it yet, gets nothing: what it took would be given to nobody else.
-- KEYS  readers (a hash: partition's key to its reader), keys of the partitions
-- ARGV  reader, group, consumer, most entries of one partition
-- Returns "taken over", or what XREADGROUP answers.
local readers, partitions = KEYS[1], {}
for number = 2, #KEYS do
  if redis.call('HGET', readers, KEYS[number]) ~= ARGV[1] then
    return 'taken over'
  end
  partitions[number - 1] = KEYS[number]
end
local command = {'XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS'}
for number = 1, #partitions do
  command[7 + number] = partitions[number]
  command[7 + #partitions + number] = '>'
end
return redis.call(unpack(command))
