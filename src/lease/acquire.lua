-- Acquires the lease for one claim, or returns why not. It is safe to repeat with the same token:
-- workers in the waiting list ask again this way.
-- KEYS[4] to [6] and ARGV[6] to [8]: the claim. ARGV[9]: 1 if a capture is posted at once.
-- ARGV[10]: 1 to join the waiting list.
return take(claim_at(4, 6), ARGV[9], ARGV[10])
