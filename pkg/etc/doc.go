// Package etc gives each slot its own /etc: an overlay whose lower layer is the
// read-only /etc of the image and whose upper layer lies on the data partition,
//
//	/data/etc/A/{upper,work}
//	/data/etc/B/{upper,work}
//
// Preinit is the work of process 1 before systemd: it finds the partitions,
// mounts them, mounts the overlay of the booted slot, and notes what went wrong.
// Clone gives the slot that an upgrade writes the configuration of the running
// one, so that going back to the old slot also brings its configuration back.
//
// The package refuses to decide what a degraded start means; it reports, and the
// health gate decides. It repairs no file system and never changes the upper
// directory of the running slot but through the mounted overlay.
package etc
