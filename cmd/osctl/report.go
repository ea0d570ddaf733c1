package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

// printReport renders the gate's report as a table: as it was checked, with the
// services of a compose project together, or the slowest first.
func printReport(w io.Writer, r health.Report, slowest bool) error {
	if _, err := fmt.Fprintf(w, "%s\n\n", verdictLine(r)); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "CHECK\tNAME\tLEVEL\tOK\tAFTER\tSEEN\tEXPECTED\n")
	for _, c := range inOrder(r.Checks, slowest) {
		level, ok := "required", "yes"
		if !c.Required {
			level = "wanted"
		}
		switch {
		case !c.OK && c.Required:
			ok = "NO"
		case !c.OK:
			ok = "warning"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Kind, cell(c.Name), level, ok, duration(c.Duration), cell(c.Seen), cell(c.Expected))
	}
	return t.Flush()
}

// verdictLine is the report in one line: the reason itself if there is one, or how
// many there are.
func verdictLine(r health.Report) string {
	took := duration(r.Duration)
	if r.Green {
		switch n := len(r.Warnings()); n {
		case 0:
			return fmt.Sprintf("GREEN after %s", took)
		case 1:
			return fmt.Sprintf("GREEN after %s, with a warning", took)
		default:
			return fmt.Sprintf("GREEN after %s, with %d warnings", took, n)
		}
	}
	list := reasons(r.Reason())
	if len(list) == 1 {
		return fmt.Sprintf("RED after %s: %s", took, list[0])
	}
	return fmt.Sprintf("RED after %s, for %d reasons", took, len(list))
}

// inOrder leaves the checks where they are, but for the workloads, whose names begin
// with that of their compose project; or puts the slowest first.
func inOrder(checks []health.Check, slowest bool) []health.Check {
	list := slices.Clone(checks)
	slices.SortStableFunc(list, func(a, b health.Check) int {
		switch {
		case slowest:
			return cmp.Compare(b.Duration, a.Duration)
		case a.Kind == health.KindWorkload && b.Kind == health.KindWorkload:
			return cmp.Compare(a.Name, b.Name)
		}
		return 0
	})
	return list
}

// duration is for people: milliseconds matter below ten seconds.
func duration(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// reasonEnd is what ends each check in the reason of a red gate, with what stands
// between two of them (health.Report.Reason).
const reasonEnd = "); "

// reasons takes the reason of a red gate apart again, into one line a check. Any
// other reason is one line.
func reasons(text string) []string {
	var list []string
	for part := range strings.SplitAfterSeq(text, reasonEnd) {
		list = append(list, cell(strings.TrimSuffix(part, "; ")))
	}
	return list
}

// cell makes text from elsewhere, such as what a probe has seen, fit into one line: no
// control character of it reaches a terminal.
func cell(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			return '?' // also what would turn the direction of a line
		}
		return r
	}, text)
}
