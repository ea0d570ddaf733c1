package main

import (
	"fmt"

	"github.com/kapernikov/osctl/pkg/upgrade"
)

// maxSpoken bounds what is said of a reason on the console and in the journal, in
// characters; osctl history has all of it.
const maxSpoken = 800

// pronounce says what settle did: one line on stdout, which the boot unit shows on
// the console, and one record with fields for the journal.
func (m *machine) pronounce(v upgrade.Verdict, s streams) {
	reason := short(cell(v.Reason), maxSpoken)
	fmt.Fprintf(s.out, "%s: slot %s", v.Action, v.Slot)
	if reason != "" {
		fmt.Fprintf(s.out, ": %s", reason)
	}
	fmt.Fprintln(s.out)
	fields := []any{"action", string(v.Action), "slot", string(v.Slot)}
	if l, err := m.ledger.Load(); err == nil {
		if e := l.Slot(v.Slot); e != nil {
			fields = append(fields, "version", e.Version, "digest", e.Digest)
		}
	}
	if v.Report != nil {
		fields = append(fields, "green", v.Report.Green, "took", duration(v.Report.Duration))
	}
	m.log.Info("verdict", append(fields, "reason", reason)...)
}

// short cuts text to a number of characters, and says that it did.
func short(text string, most int) string {
	const more = " ..."
	if list := []rune(text); len(list) > most {
		return string(list[:most-len(more)]) + more
	}
	return text
}
