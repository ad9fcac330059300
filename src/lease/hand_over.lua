-- Releases the lease and acquires it for the next job of the same payment in the same worker, in
-- one step. After enough jobs in a row (ARGV[13] is not 1), a worker in the waiting list gets it
-- first.
-- KEYS and ARGV[1] to [12] as for release. KEYS[7] to [9] and ARGV[14] to [16]: the claim of the
-- next job. ARGV[17]: 1 if its capture is posted at once.
-- Returns what release returns, followed by what `take` returns for the next job.
local mine, found = record(claim_at(4, 6), ARGV[9], ARGV[10], ARGV[11], ARGV[12])
local stays = mine and (ARGV[13] == '1' or redis.call('LLEN', LINE) == 0)
if stays then
  redis.call('DEL', LEASE)
elseif mine then
  pass_on()
end
local taken = take(claim_at(7, 14), ARGV[17], '1')
if stays and taken[1] ~= 'taken' then pass_on() end
table.insert(taken, 1, found)
table.insert(taken, 1, mine and 1 or 0)
return taken
