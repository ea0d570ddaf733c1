// Package etc gives each slot its own /etc: an overlay whose lower layer is the
// read-only /etc of the image and whose upper layer lies on the data partition,
//
//	/data/etc/A/{upper,work}   and reset.json while a reset is ordered
//	/data/etc/B/{upper,work}
//	/data/etc/factory/upper    what the machine was installed with
//
// Preinit is the work of process 1 before systemd: it finds the partitions,
// mounts them, carries out the resets that were ordered, mounts the overlay of the
// booted slot, and notes what went wrong. Where the slot's own upper layer cannot
// be used, or the slot did not come up with it, the upper layer is in memory.
// Clone gives the slot that an upgrade writes the configuration of the running
// one, so that going back to the old slot also brings its configuration back.
// Compare tells what a slot has changed, and what of that hides news of an image.
//
// The package refuses to decide what a degraded start means; it reports, and the
// health gate decides. It repairs no file system and never changes the upper
// directory of the running slot but through the mounted overlay: resets wait for
// the next boot. Everything that is left by a power cut is either not yet in
// effect or done again to the same end.
package etc
