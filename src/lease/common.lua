-- The part that all scripts share. Redis runs each script as one atomic step.
--
-- KEYS of a payment:
--   [1] lease: the token of the acquisition that has the lease.
--   [2] hold: the in-doubt block: the token that wrote it, and the id in doubt.
--   [3] line: the waiting list: the tokens that wait for the lease, one for each worker, in the
--       order of their arrival.
-- KEYS of an id:
--   [4] sent marker: the token that first wrote it, then what the gateway signed (see `marker_of`).
--   [5] known: the recorded outcome.
--   [6] replaced: the failure that was recorded when a fresh id replaced this id.
--
-- A recorded outcome is `<amount>\n<captured|failed|closed>\n<JSON>`. The scripts read its first
-- two lines. The kind `closed` is a failure that is true only if no other copy of the job was sent:
-- it was recorded as failed while leased.
--
-- When an acquisition overwrites the block or the marker of another one, it writes the token of
-- nobody (zeros). Otherwise a later rollback would take the other's value for its own and delete
-- it.

local LEASE_MS, HOLD_MS, REMEMBER_MS = ARGV[1], ARGV[2], ARGV[3]
local GRANT_MS, REPLACED_MS = ARGV[4], ARGV[5]
local LEASE, HOLD, LINE = KEYS[1], KEYS[2], KEYS[3]

-- The amount and the kind of a recorded outcome; nil if there is none.
local function read_record(record)
  if not record then return nil, nil end
  return string.match(record, '^([^\n]*)\n([^\n]*)\n')
end

-- The recorded outcome that decides a job with this amount: the outcome of its id, or the failure
-- that was recorded when the id was replaced.
local function on_record(claim, known, replaced)
  if read_record(known) == claim.amount then return known end
  if read_record(replaced) == claim.amount then return replaced end
  return nil
end

-- Passes the lease to the first of the waiting list, which claims it by asking again; or frees it.
local function pass_on()
  local heir = redis.call('LPOP', LINE)
  if heir then
    redis.call('SET', LEASE, heir, 'PX', GRANT_MS)
  else
    redis.call('DEL', LEASE)
  end
end

-- Leaves the waiting list. If the lease was passed to this token meanwhile, it goes to the next.
local function leave(token)
  redis.call('LREM', LINE, 1, token)
  if redis.call('GET', LEASE) == token then pass_on() end
end

-- Ends the in-doubt block of an id, because its outcome is known.
local function end_hold_of(token, id, hold)
  if hold and string.sub(hold, #token + 1) == id then redis.call('DEL', HOLD) end
end

-- The value of a sent marker after its token: the number of replays at which an inquiry last showed
-- that there is no such capture, in digits; then, on lines of their own, amount and code of a
-- signed F that need not be about the capture.
local function marker_of(token, mark)
  local denied_at, refused = string.match(string.sub(mark or '', #token + 1), '^(%d*)(.*)$')
  return denied_at or '', refused or ''
end

-- Records the intent to send a capture: writes the in-doubt block and the sent marker of its id.
-- `hold` and `mark` are their present values.
local function announce(claim, hold, mark, denied_at)
  local token = claim.token
  local nobody = string.rep('0', #token)
  local holds = (hold and hold ~= token .. claim.id) and nobody or token
  local marks = (mark and string.sub(mark, 1, #token) ~= token) and nobody or token
  local before, refused = marker_of(token, mark)
  if denied_at == '' then denied_at = before end
  redis.call('SET', HOLD, holds .. claim.id, 'PX', HOLD_MS)
  redis.call('SET', claim.mark, marks .. denied_at .. refused, 'PX', REMEMBER_MS)
end

-- Acquires the lease, or returns why not: {verb, detail, 1 if an earlier acquisition wrote a sent
-- marker for the id, milliseconds that the in-doubt block had left (-2: none), position in the
-- waiting list (-1: none)}. The detail of `known` is the recorded outcome, that of `taken` is the
-- value of the sent marker.
local function take(claim, posts, waits)
  local token, id = claim.token, claim.id
  local now = redis.call('MGET', claim.known, claim.mark, LEASE, HOLD, claim.replaced)
  local known, mark, holder, hold, replaced = now[1], now[2], now[3], now[4], now[5]
  local record = on_record(claim, known, replaced)
  if record or replaced then
    leave(token)
    end_hold_of(token, id, hold)
    return {record and 'known' or 'replaced', record or '', 1, -2, -1}
  end
  local is_anothers = mark and string.sub(mark, 1, #token) ~= token
  local marked = (is_anothers or known) and 1 or 0
  if holder and holder ~= token then
    local place = redis.call('LPOS', LINE, token)
    if waits == '1' then
      place = place or redis.call('RPUSH', LINE, token) - 1
      redis.call('PEXPIRE', LINE, LEASE_MS)
    end
    return {'held', '', marked, -2, place or -1}
  end
  if hold and string.sub(hold, #token + 1) ~= id then
    leave(token)
    return {'hold', '', marked, -2, -1}
  end
  local hold_left = -2
  if hold and string.sub(hold, 1, #token) ~= token then
    hold_left = redis.call('PTTL', HOLD)
  end
  redis.call('LREM', LINE, 1, token)
  redis.call('SET', LEASE, token, 'PX', LEASE_MS)
  if posts == '1' then announce(claim, hold, mark, '') end
  return {'taken', is_anothers and string.sub(mark, #token + 1) or '', marked, hold_left, -1}
end

local RANK = {closed = 1, failed = 2, captured = 3}

-- Records the result of an acquisition. The caller releases the lease afterwards. Modes:
--   final: record the outcome, and end the in-doubt block.
--   close: the same, but only if this acquisition still has the lease.
--   replace: like close, and record that a fresh id replaces this one.
--   replaced: record only that, without the lease, if a failure is recorded.
--   end: end the in-doubt block.
--   keep: the capture is in doubt; `refused` is the amount and code to keep with the sent marker.
--   back: roll back what this acquisition wrote.
--   forget: roll back even after the lease was lost, because no call was made under it.
-- Returns whether this acquisition still had the lease, and the outcome that was recorded before.
local function record(claim, mode, outcome, hold_left, refused)
  local token, id = claim.token, claim.id
  local now = redis.call('MGET', LEASE, HOLD, claim.known, claim.replaced, claim.mark)
  local mine, hold, known, replaced, mark = now[1] == token, now[2], now[3], now[4], now[5]
  local held_by_id = hold and string.sub(hold, #token + 1) == id
  local marked_by = mark and string.sub(mark, 1, #token)
  local known_amount, known_kind = read_record(known)
  if mode == 'final' or mine and (mode == 'close' or mode == 'replace') then
    -- The outcome is true whichever acquisition has the lease by now. A recorded capture is never
    -- overwritten, and a verdict about the id is not overwritten by one that need not be about it.
    local _, kind = read_record(outcome)
    if not known or known_kind ~= 'captured' and RANK[kind] >= (RANK[known_kind] or 0) then
      redis.call('SET', claim.known, outcome, 'PX', REMEMBER_MS)
    end
    if held_by_id then redis.call('DEL', HOLD) end
  elseif mine and mode == 'end' then
    if held_by_id then redis.call('DEL', HOLD) end
  elseif mode == 'keep' then
    if refused ~= '' then
      local marker = (marked_by or token) .. marker_of(token, mark) .. '\n' .. refused
      redis.call('SET', claim.mark, marker, 'PX', REMEMBER_MS)
    end
    -- Another acquisition recorded the id as failed, because there was no capture, while this call
    -- was under way. The call may have captured, so that failure is no longer proven.
    if not mine and known_kind == 'closed' then redis.call('DEL', claim.known) end
  elseif mode == 'forget' or mine and mode == 'back' then
    if held_by_id then
      if string.sub(hold, 1, #token) == token then
        redis.call('DEL', HOLD)
      elseif mine and tonumber(hold_left) > 0 then
        redis.call('PEXPIRE', HOLD, hold_left)
      end
    end
    if marked_by == token then redis.call('DEL', claim.mark) end
  end
  local is_recorded = known_amount == claim.amount or read_record(replaced) == claim.amount
  local replaces = mode == 'replaced' and is_recorded or mine and mode == 'replace'
  if replaces and known_kind ~= 'captured' then
    redis.call('SET', claim.replaced, outcome, 'PX', REPLACED_MS)
  end
  local found = known
  if known_amount ~= claim.amount and known_kind ~= 'captured' then found = replaced or nil end
  -- A verdict about the id is final for every amount. A failure of the kind `closed` is final only
  -- for its own amount, and only under the lease.
  local is_final = known_kind == 'captured' or known_kind == 'failed'
  local amount, kind = read_record(found)
  if is_final or amount == claim.amount and (mine or kind ~= 'closed') then
    end_hold_of(token, id, hold)
  end
  return mine, found or ''
end

-- The claim whose keys begin at KEYS[key] and whose arguments begin at ARGV[arg].
local function claim_at(key, arg)
  return {
    mark = KEYS[key], known = KEYS[key + 1], replaced = KEYS[key + 2],
    token = ARGV[arg], id = ARGV[arg + 1], amount = ARGV[arg + 2],
  }
end
