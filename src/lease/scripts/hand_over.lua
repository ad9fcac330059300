-- Releases the lease and acquires it for the next job of the same payment in the same worker, in
-- one step. After enough jobs in a row (`stays` is false), a worker in the waiting list gets it
-- first.
-- Returns {what `released` returns, what `acquire` returns for the next job}.
local result = {mode = ARGV[9], outcome = ARGV[10], block_left_ms = ARGV[11], refused = ARGV[12]}
local stays = ARGV[13] == '1' -- The lease stays in this worker even if another one waits.
local next_claim = {
  marker = KEYS[7], recorded = KEYS[8], replaced = KEYS[9],
  token = ARGV[14], id = ARGV[15], amount = ARGV[16],
}
local next_posts = ARGV[17] == '1' -- The capture of the next job is posted at once.

local is_ours, found = record(CLAIM, result)
local is_passed_inside = is_ours and (stays or redis.call('LLEN', WAITING_LIST) == 0)
if is_passed_inside then
  redis.call('DEL', LEASE)
elseif is_ours then
  pass_on()
end
local acquired = acquire(next_claim, next_posts, true)
if is_passed_inside and acquired[1] ~= 'taken' then pass_on() end
return {released(is_ours, found), acquired}
