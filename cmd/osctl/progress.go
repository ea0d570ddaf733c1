package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/spf13/pflag"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/kapernikov/osctl/pkg/progress"
)

// progressFlags choose how progress is shown on stderr.
type progressFlags struct{ mode string }

func progressModes() []string { return []string{"auto", "plain", "json", "none"} }

func (f *progressFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.mode, "progress", "auto", "show progress on stderr: auto, plain, json or none")
}

// display shows progress events.
type display struct {
	sink   progress.Sink
	finish func()
}

func (f progressFlags) display(s streams) (display, error) {
	switch f.mode {
	case "none":
		return display{sink: nil, finish: func() {}}, nil
	case "json":
		return jsonDisplay(s.err), nil
	case "plain":
		return plainDisplay(s.err), nil
	case "auto":
		if file, ok := s.err.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
			return barDisplay(file), nil
		}
		return plainDisplay(s.err), nil
	}
	return display{}, usageError{fmt.Errorf("--progress %q: allowed are auto, plain, json and none", f.mode)}
}

// phaseNames are the phases in words.
func phaseName(p progress.Phase) string {
	switch p {
	case progress.Compare:
		return "comparing the slot"
	case progress.Fetch:
		return "fetching"
	case progress.Write:
		return "writing"
	case progress.Check:
		return "reading back"
	case progress.Build:
		return "packing"
	case progress.Push:
		return "pushing"
	}
	return string(p)
}

// plainDisplay prints a line when a phase starts and at each quarter of it.
func plainDisplay(w io.Writer) display {
	var mu sync.Mutex
	shown := map[progress.Phase]int64{}
	return display{finish: func() {}, sink: func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Text != "" {
			fmt.Fprintln(w, e.Text)
			return
		}
		if e.Total == 0 {
			return
		}
		quarter := min(e.Done, e.Total) * 4 / e.Total
		last, started := shown[e.Phase]
		if started && quarter <= last {
			return
		}
		shown[e.Phase] = quarter
		fmt.Fprintf(w, "%s: %d%% of %s\n", phaseName(e.Phase), quarter*25, size(e.Total))
	}}
}

// jsonDisplay prints one JSON object a line: the events as they are, except that
// counts are thinned out to one a percent.
func jsonDisplay(w io.Writer) display {
	var mu sync.Mutex
	shown := map[progress.Phase]int64{}
	encoder := json.NewEncoder(w)
	return display{finish: func() {}, sink: func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Text == "" && e.Total > 0 {
			percent := e.Done * 100 / e.Total
			if last, started := shown[e.Phase]; started && percent <= last {
				return
			}
			shown[e.Phase] = percent
		}
		// A reader that went away must not stop an upgrade.
		_ = encoder.Encode(e) //nolint:errcheck // see above
	}}
}

// barDisplay draws a bar a phase, with rate and time left.
func barDisplay(w io.Writer) display {
	p := mpb.New(mpb.WithOutput(w), mpb.WithWidth(64))
	var mu sync.Mutex
	bars := map[progress.Phase]*mpb.Bar{}
	return display{
		finish: func() {
			mu.Lock()
			defer mu.Unlock()
			for _, b := range bars {
				// A phase that an error cut short keeps its last picture.
				b.Abort(false)
			}
			p.Wait()
		},
		sink: func(e progress.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Text != "" || e.Total == 0 {
				return
			}
			b := bars[e.Phase]
			if b == nil {
				b = p.AddBar(e.Total,
					mpb.PrependDecorators(decor.Name(phaseName(e.Phase), decor.WCSyncSpaceR), decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)),
					mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5}), decor.AverageSpeed(decor.SizeB1024(0), " % .1f"), decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8})))
				bars[e.Phase] = b
			}
			b.SetCurrent(min(e.Done, e.Total))
		},
	}
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
