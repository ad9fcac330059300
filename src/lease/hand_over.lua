-- Gives the lease back and takes it for the next job of the same payment in the same worker, in one step. After enough jobs
-- in a row (ARGV[10] is not 1), another worker that waits in line has it first.
-- KEYS and ARGV[5] to [9] as for release; KEYS[6], KEYS[7] mark and known outcome of the next job's id.
-- ARGV[11] to [14]: token, captureRequestId, amount of the next job, 1 if it posts at once.
-- Returns {1 or 0 as release does, and what take says of the next job}.
local mine = record(ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], KEYS[4], KEYS[5])
local stays = mine and (ARGV[10] == '1' or redis.call('LLEN', KEYS[3]) == 0)
if stays then
  redis.call('DEL', KEYS[1])
elseif mine then
  pass_on()
end
local taken = take(ARGV[11], ARGV[12], ARGV[13], ARGV[14], '1', KEYS[6], KEYS[7])
if stays and taken[1] ~= 'taken' then pass_on() end
table.insert(taken, 1, mine and 1 or 0)
return taken
