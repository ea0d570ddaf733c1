package planted

// shownFaults are in what a person is shown of a gate and of its verdict.
func shownFaults() []fault {
	return []fault{
		{"a gate that was killed is shown", "status/gate.go", "return lock.Type != unix.F_UNLCK, nil", "return true, nil", "status TestGateIsReadFromAnotherProcess", true},
		{"a second gate ends the first one's note", "status/gate.go", "	if n.lock == nil {\n		return nil\n	}\n	err := errors.Join", "	if n.lock == nil {\n		return n.clear()\n	}\n	err := errors.Join", "status TestGateIsRead", true},
		{"a countdown that stands still", "status/gate.go", "passed := max(now-n.Noted, 0)", "passed := 0 * max(now-n.Noted, 0)", "status TestGateAt", false},
		{"wanted checks are waited for", "status/gate.go", "		if !c.Required {\n			continue", "		if false {\n			continue", "status TestGateAt", true},
		{"a note that cannot be read is no problem", "status/status.go", "shot.complain(\"whether the gate runs is unknown\", err)", "_ = err", "status TestGateThatCannotBeRead", true},
		{"escapes reach the console", "announce/announce.go", "case r < ' ' || r > '~':", "case false:", "announce TestLineIsPlain", false},
		{"agetty expands the line", "announce/announce.go", "case r == '\\\\':", "case false:", "announce TestLineIsPlain", true},
		{"a line without an end", "announce/announce.go", "if len(text) > most {", "if false {", "announce TestLineIsPlain", true},
		{"an old failure is news", "announce/announce.go", "failure != nil && shot.Other.State == ledger.Failed && failure.Digest == shot.Other.Digest", "failure != nil", "announce TestLine", true},
		{"a clock that is wrong is believed", "announce/announce.go", "if f.Now.IsZero() {", "if false {", "announce TestLine", true},
		{"labels are not escaped", "announce/metrics.go", "escape.Replace(strings.ToValidUTF8(pairs[i+1], \"?\"))", "escape.Replace(\"\")+pairs[i+1]", "announce TestMetricsAreEscaped", false},
		{"two states at once", "announce/metrics.go", "if v == is {", "if v == is || v == \"committed\" {", "announce TestMetricsOfStates", true},
	}
}
