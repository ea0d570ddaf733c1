package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/etc"
)

// preinitReport is what preinit found and did on this boot; empty if it did not
// run. A report that cannot be read is itself a problem.
func (m *machine) preinitReport() etc.Report {
	r, err := etc.ReadReport(filepath.Join(m.config.RuntimeDir, filepath.Base(etc.ReportPath)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Problems = []etc.Problem{{Step: "knowing what preinit did", Error: err.Error()}}
	}
	return r
}

// degraded lists what preinit could not do on this boot.
func (m *machine) degraded() []string {
	var list []string
	for _, p := range m.preinitReport().Problems {
		list = append(list, p.Step+": "+p.Error)
	}
	return list
}

// pendingResets lists what the next boot resets.
func (m *machine) pendingResets() []string {
	var list []string
	if order, err := etc.PendingFactory(m.config.StateDir); err != nil {
		list = append(list, err.Error())
	} else if order != nil {
		list = append(list, "factory reset, applications: "+string(order.Apps))
	}
	for _, slot := range []device.Slot{device.SlotA, device.SlotB} {
		if order, err := etc.PendingReset(m.config.EtcDir, slot); err != nil {
			list = append(list, err.Error())
		} else if order != nil {
			list = append(list, fmt.Sprintf("slot %s: reset of %s", slot, what(*order)))
		}
	}
	return list
}

// maxWords bounds what is shown of a failed boot, in bytes.
const maxWords = 4 << 10

// lastWords is what the system said that stopped in the emergency target last
// (/usr/lib/osctl/emergency leaves it on the data partition).
func (m *machine) lastWords() string {
	data, err := os.ReadFile(filepath.Join(m.config.StateDir, "emergency.txt"))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data[:min(len(data), maxWords)])), "\n")
	return strings.Join(lines, "; ")
}
