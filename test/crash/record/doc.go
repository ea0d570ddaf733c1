// Package record turns what a program does to some folders and files into the
// operations of package model. The program is a black box: strace tells every
// system call of it and of its children, with the data.
//
// The package refuses to guess: a call that changes something below a root and that
// it does not know is an error, and so is one whose data strace cut off. It reads
// and writes the real file system with the privileges of the test.
package record
