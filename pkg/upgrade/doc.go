// Package upgrade knows the order of an upgrade, and is the only place that does:
//
//	resolve → describe → verify → admit → compare
//	→ invalidate → write → read back → clone /etc → rehearse → ledger → arm
//
// The invariants that the order keeps, at any instant, a power cut included:
//
//  1. The running slot is never written: the target is the other slot than the
//     booted one, and it is opened exclusively.
//  2. A slot is made unbootable before its first byte changes (package slot), and
//     a trial that was armed for it is taken back before that.
//  3. The boot state names a slot only after all its bytes are durable and were
//     read back from the medium: boot.Arm takes a slot.Written.
//  4. One complete bootable slot exists at any time: the running one.
//  5. Rollback needs neither network nor containerd: nothing here is needed for it.
//  6. The anti-rollback floor rises only at commit: it is not touched here.
//  7. One upgrade at a time: the lock is taken first and dies with its holder.
//  8. No unverified byte becomes bootable: what reaches the slot went through
//     trust.Verify, admit.Decide and the segment digests of that very image.
//  9. Running the same command again converges: each step finds what the step
//     before it, or an earlier run, has done.
//
// Each stage is a type that only the stage before it can make; skipping one does
// not compile. The package moves no bytes itself and prints nothing.
package upgrade
