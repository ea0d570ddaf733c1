// Package boot owns the boot states: which slot GRUB boots, for how many tries,
// and what follows, down a ladder of four rungs, the last one rescue, and from there
// round to the first. Next is the table of that; grub.cfg is the same in GRUB's
// language. The states live in two copies of a GRUB environment block on the ESP,
// which grub.cfg reads and writes at boot and this package while the system runs;
// docs/boot-states.md describes the format and the states for both.
//
// The package refuses to know why a slot is good. It arms only what a
// slot.Written proves or what the caller vouches for as proven before
// (ArmProven), it never puts the slot on trial that the state calls proven, and
// it starts no reboot.
//
// What it promises, a cut of power at any moment included:
//
//   - One whole copy exists at any time. The copies are written in place, one
//     after the other, the worse one first, and each is read back from the medium
//     before the next is touched.
//   - The state is the old one or the new one, never a third. A state is one
//     sector, which a disk writes whole, and the number of the write stands at
//     both its ends.
//   - GRUB and this package choose the same copy. A test runs both on the same
//     files.
//
// Changes are made by one process at a time: the caller has taken the Lock.
package boot
