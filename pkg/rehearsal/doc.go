// Package rehearsal looks into a system before it is started for the first time: do
// the programs of the image that a slot holds get along with the /etc that this
// machine will give them?
//
// The slot is entered as a throw-away container of containerd, named "rehearsal" in
// osctl's own namespace. All mounts are in the container's own mount namespace and
// vanish with it, however it ends: the slot's file system, read-only and without
// replaying a journal; upon it the /etc of that slot, read-only as well; beside it the
// running system, to compare with. There is no network, no device but null, zero and
// random, and a bound of memory, of processes and of time. Process 1 in there is this
// program (Inside): it runs the checks one after the other, each within a third of the
// time, and ends by itself when the time is over, also when nobody waits any more.
//
// What is wrong in the running system as well is no news and holds no upgrade back.
// What the image lacks is skipped, and the report says so.
//
// The package refuses to write: not the slot, not an /etc, not the boot state. It does
// not know what an upgrade is, and decides nothing but what a Mode says of a Report.
// It promises that the slot's device is free when Run returns without an error, or with
// one that does not say otherwise.
package rehearsal
