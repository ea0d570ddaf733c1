// Package model says what a medium may hold after the power was cut: the state
// before a program ran, and the changes that it made (recorded by package strace),
// give every state that the file systems and the disk permit.
//
// The model is more pessimistic than any file system that osctl runs on:
//
//   - A change that no sync covered is there or is not, whatever the order in which
//     the program made it. ext4 would keep directory changes in order.
//   - A write that no sync covered may be there in part: any number of sectors of
//     512 bytes from its start, or all but those; of a write of up to four sectors
//     any combination. One sector of it may also be garbage, as if the cut had
//     destroyed it; not within the large writes to a slot.
//   - A file may have grown without its data: it then holds zeros.
//   - fsync of a file orders its content, its length and its attributes, and not its
//     name. fsync of a directory orders the names in it. syncfs orders all.
//   - A rename is one change on ext4 and two on FAT.
//   - What was not covered by a sync on one file is independent of every other
//     file, of the slots and of the boot state.
//
// Sectors are written whole or destroyed, and what a sync covered stays: a disk that
// lies about its flush is another matter, and the read-back of osctl's is what finds
// it.
//
// The package refuses to know what the files mean.
package model
