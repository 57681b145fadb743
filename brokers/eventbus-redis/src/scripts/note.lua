#!lua flags=allow-oom
-- Notes which events are in handlers, while it is looked for one that ends processes.
--
-- ARGV: prefix, then of each note: group, field, value.
for at = 2, #ARGV, 3 do
  redis.call('HSET', ARGV[1] .. 'suspects:' .. ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
return 1
