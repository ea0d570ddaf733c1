package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kapernikov/osctl/pkg/rescue"
)

// tell is what auto says after an attempt.
func tell(w io.Writer, r rescue.Result, err error, pause time.Duration) {
	switch {
	case pause == 0:
	case err != nil:
		fmt.Fprintf(w, "This attempt did not work: %s\nThe next one is in %s.\n", strings.ReplaceAll(err.Error(), "\n", "; "), pause)
	case r.Outcome == rescue.Whole:
		fmt.Fprintf(w, "The slots hold what they should, and there is nothing newer. The next look is in %s.\n", pause)
	}
}

// printSurvey renders what happened to the machine.
func printSurvey(w io.Writer, survey rescue.Survey) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "Boot state\t%s\n", survey.State)
	for _, slot := range survey.Slots {
		fmt.Fprintf(t, "Slot %s\t%s\n", slot.Name, describeSlot(slot))
		if slot.Reference != "" {
			fmt.Fprintf(t, "\t%s\n", slot.Reference)
		}
		for i, d := range slot.Damage {
			if i == shownRanges {
				fmt.Fprintf(t, "\t… and %d more ranges\n", len(slot.Damage)-i)
				break
			}
			fmt.Fprintf(t, "\t%s\n", d)
		}
	}
	if f := survey.LastFailure; f != nil {
		fmt.Fprintf(t, "Failed\t%s on %s: %s\n", f.Version, when(f.At), f.Reason)
	}
	for i, e := range survey.History {
		title := ""
		if i == 0 {
			title = "History"
		}
		fmt.Fprintf(t, "%s\t%s  %s  slot %s  %s  %s\n", title, when(e.At), e.Kind, e.Slot, e.Version, e.Reason)
	}
	for _, p := range survey.Problems {
		fmt.Fprintf(t, "Problem\t%s\n", p)
	}
	return t.Flush()
}

func describeSlot(s rescue.Slot) string {
	what := s.Version
	if what == "" {
		what = "nothing that is known"
	}
	if s.Committed {
		what += ", committed here"
	}
	switch {
	case s.Whole:
		return what + ", whole"
	case len(s.Damage) > 0:
		return what + ", DAMAGED"
	}
	return what + ", not proven: " + s.Problem
}
