-- The functions that all scripts share: everything that happens at the keys of one payment. Redis
-- runs each script as one atomic step.
--
-- KEYS of a payment:
--   [1] the lease: the token of the acquisition that has it.
--   [2] the in-doubt block: the token that wrote it, and the id in doubt.
--   [3] the waiting list: the tokens that wait for the lease, one for each worker, in the order of
--       their arrival.
-- KEYS of an id:
--   [4] the sent marker: the token that first wrote it, then what the gateway signed (see
--       `marker_text`).
--   [5] the recorded outcome.
--   [6] the failure that was recorded when a fresh id replaced this id.
--
-- A recorded outcome is `<amount>\n<captured|failed|closed>\n<JSON>`. The scripts read its first
-- two lines. The kind `closed` is a failure that is true only if no other copy of the job was sent:
-- it was recorded as failed while leased.
--
-- When an acquisition overwrites the block or the marker of another one, it writes the token of
-- nobody (zeros). Otherwise a later rollback would take the other's value for its own and delete
-- it.
--
-- A reply is a table whose first element is a tag, followed by the facts of that tag. An absent
-- fact is `false`.

local LEASE, BLOCK, WAITING_LIST = KEYS[1], KEYS[2], KEYS[3]
local LEASE_MS, BLOCK_MS, REMEMBER_MS = ARGV[1], ARGV[2], ARGV[3]
local GRANT_MS, REPLACED_MS = ARGV[4], ARGV[5]

-- What one acquisition asks for, and the keys of its id.
local CLAIM = {
  marker = KEYS[4], recorded = KEYS[5], replaced = KEYS[6],
  token = ARGV[6], id = ARGV[7], amount = ARGV[8],
}

-- The amount and the kind of a recorded outcome; nil if there is none.
local function amount_and_kind(record)
  if not record then return nil, nil end
  return string.match(record, '^([^\n]*)\n([^\n]*)\n')
end

-- The recorded outcome that decides a job with this amount: the outcome of its id, or the failure
-- that was recorded when the id was replaced.
local function deciding_record(claim, recorded, replaced)
  if amount_and_kind(recorded) == claim.amount then return recorded end
  if amount_and_kind(replaced) == claim.amount then return replaced end
  return nil
end

-- Passes the lease to the first of the waiting list, which claims it by asking again; or frees it.
local function pass_on()
  local first = redis.call('LPOP', WAITING_LIST)
  if first then
    redis.call('SET', LEASE, first, 'PX', GRANT_MS)
  else
    redis.call('DEL', LEASE)
  end
end

-- Leaves the waiting list. If the lease was passed to this token meanwhile, it goes to the next.
local function leave(token)
  redis.call('LREM', WAITING_LIST, 1, token)
  if redis.call('GET', LEASE) == token then pass_on() end
end

-- Ends the in-doubt block of an id, because its outcome is known.
local function end_block_of(token, id, block)
  if block and string.sub(block, #token + 1) == id then redis.call('DEL', BLOCK) end
end

-- The value of a sent marker after its token: the number of replays at which an inquiry last showed
-- that there is no such capture, in digits; then, on lines of their own, amount and code of a
-- signed F that need not be about the capture.
local function marker_text(token, marker)
  local text = string.sub(marker or '', #token + 1)
  local denied_at, refused = string.match(text, '^(%d*)(.*)$')
  return denied_at or '', refused or ''
end

-- Records the intent to send a capture: writes the in-doubt block and the sent marker of its id.
-- `block` and `marker` are their present values.
local function record_intent(claim, block, marker, denied_at)
  local token = claim.token
  local nobody = string.rep('0', #token)
  local block_by = (block and block ~= token .. claim.id) and nobody or token
  local marker_by = (marker and string.sub(marker, 1, #token) ~= token) and nobody or token
  local before, refused = marker_text(token, marker)
  if denied_at == '' then denied_at = before end
  redis.call('SET', BLOCK, block_by .. claim.id, 'PX', BLOCK_MS)
  redis.call('SET', claim.marker, marker_by .. denied_at .. refused, 'PX', REMEMBER_MS)
end

-- Acquires the lease, or returns why not. `marked` is 1 if an earlier acquisition wrote a sent
-- marker for the id. The replies:
--   {'taken', text of that sent marker, milliseconds that the in-doubt block had left}
--   {'recorded', the recorded outcome}
--   {'replaced'}: a fresh id replaced this one, for another amount
--   {'held', marked, position in the waiting list}: another acquisition has the lease
--   {'blocked', marked}: another id of the payment is in doubt
local function acquire(claim, posts, waits)
  local token, id = claim.token, claim.id
  local now = redis.call('MGET', claim.recorded, claim.marker, LEASE, BLOCK, claim.replaced)
  local recorded, marker, holder, block, replaced = now[1], now[2], now[3], now[4], now[5]
  local record = deciding_record(claim, recorded, replaced)
  if record or replaced then
    leave(token)
    end_block_of(token, id, block)
    if record then return {'recorded', record} end
    return {'replaced'}
  end
  local is_anothers = marker and string.sub(marker, 1, #token) ~= token
  local marked = (is_anothers or recorded) and 1 or 0
  if holder and holder ~= token then
    local position = redis.call('LPOS', WAITING_LIST, token)
    if waits then
      position = position or redis.call('RPUSH', WAITING_LIST, token) - 1
      redis.call('PEXPIRE', WAITING_LIST, LEASE_MS)
    end
    return {'held', marked, position}
  end
  if block and string.sub(block, #token + 1) ~= id then
    leave(token)
    return {'blocked', marked}
  end
  local block_left_ms = false
  if block and string.sub(block, 1, #token) ~= token then
    block_left_ms = redis.call('PTTL', BLOCK)
  end
  redis.call('LREM', WAITING_LIST, 1, token)
  redis.call('SET', LEASE, token, 'PX', LEASE_MS)
  if posts then record_intent(claim, block, marker, '') end
  local text = is_anothers and string.sub(marker, #token + 1) or ''
  return {'taken', marked == 1 and text, block_left_ms}
end

local RANK = {closed = 1, failed = 2, captured = 3}

-- Records the result of an acquisition. The caller releases the lease afterwards. Modes:
--   final: record the outcome, and end the in-doubt block.
--   close: the same, but only if this acquisition still has the lease.
--   replace: like close, and record that a fresh id replaces this one.
--   replaced: record only that, without the lease, if a failure is recorded.
--   end: end the in-doubt block.
--   keep: the capture is in doubt; `refused` is the amount and code to keep with the sent marker.
--   roll_back: roll back what this acquisition wrote.
--   roll_back_lost: roll back even after the lease was lost, because no call was made under it.
-- Returns whether this acquisition still had the lease, and the outcome that was recorded before.
local function record(claim, result)
  local token, id, mode, outcome = claim.token, claim.id, result.mode, result.outcome
  local now = redis.call('MGET', LEASE, BLOCK, claim.recorded, claim.replaced, claim.marker)
  local is_ours, block, recorded, replaced, marker = now[1] == token, now[2], now[3], now[4], now[5]
  local is_blocked_by_id = block and string.sub(block, #token + 1) == id
  local marker_by = marker and string.sub(marker, 1, #token)
  local recorded_amount, recorded_kind = amount_and_kind(recorded)
  if mode == 'final' or is_ours and (mode == 'close' or mode == 'replace') then
    -- The outcome is true whichever acquisition has the lease by now. A recorded capture is never
    -- overwritten, and a verdict about the id is not overwritten by one that need not be about it.
    local _, kind = amount_and_kind(outcome)
    local is_stronger = recorded_kind ~= 'captured' and RANK[kind] >= (RANK[recorded_kind] or 0)
    if not recorded or is_stronger then
      redis.call('SET', claim.recorded, outcome, 'PX', REMEMBER_MS)
    end
    if is_blocked_by_id then redis.call('DEL', BLOCK) end
  elseif is_ours and mode == 'end' then
    if is_blocked_by_id then redis.call('DEL', BLOCK) end
  elseif mode == 'keep' then
    if result.refused ~= '' then
      local text = (marker_by or token) .. marker_text(token, marker) .. '\n' .. result.refused
      redis.call('SET', claim.marker, text, 'PX', REMEMBER_MS)
    end
    -- Another acquisition recorded the id as failed, because there was no capture, while this call
    -- was under way. The call may have captured, so that failure is no longer proven.
    if not is_ours and recorded_kind == 'closed' then redis.call('DEL', claim.recorded) end
  elseif mode == 'roll_back_lost' or is_ours and mode == 'roll_back' then
    if is_blocked_by_id then
      if string.sub(block, 1, #token) == token then
        redis.call('DEL', BLOCK)
      elseif is_ours and tonumber(result.block_left_ms) > 0 then
        redis.call('PEXPIRE', BLOCK, result.block_left_ms)
      end
    end
    if marker_by == token then redis.call('DEL', claim.marker) end
  end
  local has_record = recorded_amount == claim.amount or amount_and_kind(replaced) == claim.amount
  local replaces = mode == 'replaced' and has_record or is_ours and mode == 'replace'
  if replaces and recorded_kind ~= 'captured' then
    redis.call('SET', claim.replaced, outcome, 'PX', REPLACED_MS)
  end
  local found = recorded
  if recorded_amount ~= claim.amount and recorded_kind ~= 'captured' then
    found = replaced or nil
  end
  -- A verdict about the id is final for every amount. A failure of the kind `closed` is final only
  -- for its own amount, and only under the lease.
  local is_final = recorded_kind == 'captured' or recorded_kind == 'failed'
  local amount, kind = amount_and_kind(found)
  if is_final or amount == claim.amount and (is_ours or kind ~= 'closed') then
    end_block_of(token, id, block)
  end
  return is_ours, found
end

-- The reply about a lease that is released:
--   {'released', the outcome that was recorded before}
--   {'lost', the same}: this acquisition no longer had the lease
local function released(was_ours, found)
  return {was_ours and 'released' or 'lost', found or false}
end
