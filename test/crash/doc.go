// Package crash proves that no power cut bricks a machine. It records every change
// that the real osctl makes on a machine of plain files (package record), makes every
// state that the medium may be left in (package model), boots each with the real
// grub.cfg (package grub), holds the invariants of the design, and lets the real
// osctl go on from there.
//
// docs/crash-states.md explains the model, and has the figures of a long run. Run
// "make crash" for all of it; "make test" takes a sample.
package crash
