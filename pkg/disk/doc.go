// Package disk opens block devices and plain files for exclusive use, proves
// what is on the medium, finds partitions by their GPT name, and creates the
// disk of a new machine.
//
// It knows bytes and partitions. It does not know what a slot, an image or a
// boot state is, and never decides whether something should be written.
//
// It refuses to open what somebody else uses (a mounted partition, the disk
// of one, a file that a loop device, QEMU or another osctl holds), to read or
// write outside the opened range, and to guess between two partitions of the
// same name.
//
// It promises that [Device.ReadAt], [Device.WriteAt] and [Device.ReadBackAt]
// move all bytes or return an error, that [Device.Sync] returns after the
// medium has confirmed its cache flush, and that [Device.ReadBackAt] does not
// answer from this machine's page cache where the file system allows it.
package disk
