// Package announce says how the machine stands to those who do not ask: as one line
// for the console and for who logs in, and as metrics in Prometheus' text format for
// node_exporter's textfile collector.
//
// It finds out nothing by itself: both are made of a status.Snapshot and of the report
// of this boot's gate. It knows neither agetty nor PAM nor node_exporter, only two
// files; the image ties them to who shows them.
//
// It promises that nothing from elsewhere, such as the reason of a failure, does more
// than to be read: the line is printable ASCII of at most MaxLine characters, without
// the backslash by which agetty's escapes begin, and the metrics are escaped.
package announce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/status"
)

// MaxLine bounds the line, in characters.
const MaxLine = 240

// Facts are what is told.
type Facts struct {
	Shot status.Snapshot
	// Report is that of this boot's gate; nil if none has ended.
	Report *health.Report
	// Now is the time; zero if the clock is not to be believed.
	Now time.Time
}

// Files are where it is told; an empty name leaves that one out.
type Files struct {
	Line    string
	Metrics string
}

// Write replaces the files, each of them whole, and makes their folders. Everybody
// may read them. Both are tried.
func (f Files) Write(facts Facts) error {
	return errors.Join(replace(f.Line, Line(facts)+"\n"), replace(f.Metrics, Metrics(facts)))
}

func replace(name, text string) error {
	if name == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	if err := atomicfile.Write(name, []byte(text), 0o644); err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	return nil
}

// Line says in one line how the machine stands: committed, on trial, or fell back and
// why.
func Line(f Facts) string {
	shot := f.Shot
	product := shot.Product
	if product == "" {
		product = "this machine"
	}
	return plain(fmt.Sprintf("osctl: %s %s (slot %s): %s", product, shot.Booted.Version, shot.Booted.Slot, standing(f)), MaxLine)
}

func standing(f Facts) string {
	shot := f.Shot
	switch shot.State {
	case "trial":
		return "on trial, " + tries(shot.TriesLeft) + verdict(f)
	case "armed":
		return fmt.Sprintf("%s in slot %s starts at the next boot, on trial", shot.Other.Version, shot.Other.Slot)
	case "fell back":
		return "fell back" + because(shot.LastFailure)
	case "committed":
		if fellBack(shot) {
			return "committed; fell back" + because(shot.LastFailure)
		}
		return "committed"
	}
	return "its boot state is unknown, see osctl status"
}

// fellBack reports whether the other slot still holds what the machine fell back from.
// Times tell nothing: a clock may have been wrong.
func fellBack(shot status.Snapshot) bool {
	failure := shot.LastFailure
	return failure != nil && shot.Other.State == ledger.Failed && failure.Digest == shot.Other.Digest
}

func tries(n int) string {
	if n == 1 {
		return "1 try left"
	}
	return fmt.Sprintf("%d tries left", n)
}

// verdict says until when the gate that runs has decided. The line is not written again
// while it counts down, so it has the time of day, or how long the gate may take in all
// where that is not known.
func verdict(f Facts) string {
	g := f.Shot.Gate
	if g == nil {
		return ""
	}
	left := time.Duration(g.SecondsLeft) * time.Second
	if f.Now.IsZero() {
		return fmt.Sprintf(", verdict in at most %s", left)
	}
	return ", verdict by " + f.Now.Add(left).UTC().Format("15:04:05 UTC")
}

func because(failure *ledger.Failure) string {
	if failure == nil {
		return ""
	}
	return fmt.Sprintf(" from %s because %s", failure.Version, failure.Reason)
}

// plain is text of at most so many characters, all of them printable ASCII and none a
// backslash.
func plain(text string, most int) string {
	const more = " ..."
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r == '\\':
			return '/'
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, text)
	if len(text) > most {
		return text[:most-len(more)] + more
	}
	return text
}
