-- Takes the lease for one acquisition, or says why not. Safe to repeat with the same token: that is how a waiter asks again.
-- KEYS[4] to [6] and ARGV[6] to [8]: the claim. ARGV[9] 1 if a capture will be posted at once, [10] 1 to wait in line.
return take(claim_at(4, 6), ARGV[9], ARGV[10])
