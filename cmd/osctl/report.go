package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

// printReport renders the gate's report as a table.
func printReport(w io.Writer, r health.Report) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	verdict := "RED: " + r.Reason()
	if r.Green {
		verdict = "GREEN"
	}
	fmt.Fprintf(t, "%s (%s)\n\n", verdict, r.Duration.Round(time.Millisecond))
	fmt.Fprintf(t, "CHECK\tNAME\tOK\tSEEN\tEXPECTED\n")
	for _, c := range r.Checks {
		ok := "yes"
		if !c.OK {
			ok = "NO"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", c.Kind, c.Name, ok, c.Seen, c.Expected)
	}
	return t.Flush()
}
