package main

import (
	"fmt"
	"os"

	"github.com/kapernikov/osctl/pkg/etc"
)

// preinit is process 1 until it becomes systemd. It returns only when that
// failed; the kernel then panics, and the boot loader takes a try away.
func preinit(args []string, s streams) int {
	for _, p := range etc.Preinit().Problems {
		fmt.Fprintf(s.err, "osctl preinit: %s: %s\n", p.Step, p.Error)
	}
	return report(s.err, etc.Handover(args, os.Environ()))
}
