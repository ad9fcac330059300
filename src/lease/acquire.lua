-- Takes the lease for one acquisition, or says why not. Safe to repeat with the same token: that is how a waiter asks again.
-- KEYS[4] mark of this id, KEYS[5] known outcome of this id.
-- ARGV[5] token, [6] captureRequestId, [7] amount, [8] 1 if a capture will be posted at once, [9] 1 to wait in line.
return take(ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], KEYS[4], KEYS[5])
