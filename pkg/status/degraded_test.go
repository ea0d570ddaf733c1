package status

import (
	"context"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// TestWhy: the rung that runs is explained with what the boots before left, and
// with nothing that was before the last commit.
func TestWhy(t *testing.T) {
	for name, c := range map[string]struct {
		kind, words string
		events      []ledger.Event
		want, not   string
	}{
		"as it should be":   {kind: boot.KindCommitted, words: "old words", not: "old words"},
		"committed since":   {kind: boot.KindTrial, not: "on trial"},
		"pristine":          {kind: boot.KindPristine, want: "did not come up with the /etc of this machine"},
		"with its reason":   {boot.KindPristine, "", []ledger.Event{{Kind: "not up", Slot: "B", Reason: "dbus.service: inactive"}}, "slot B lacked dbus.service: inactive", ""},
		"with last words":   {boot.KindPristine, "emergency.target was reached; bad fstab", nil, "it stopped with: emergency.target was reached; bad fstab", ""},
		"the other slot":    {boot.KindOther, "", []ledger.Event{{Kind: "not up", Slot: "A", Reason: "ssh.service: failed"}, {Kind: "adopted"}}, "slot A lacked ssh.service: failed", ""},
		"before the commit": {boot.KindFallback, "", []ledger.Event{{Kind: "not up", Reason: "long ago"}, {Kind: "committed"}}, "failed its trial", "long ago"},
	} {
		s := sources(t)
		s.Booted.Kind, s.LastWords = c.kind, c.words
		err := s.Ledger.Update(func(l *ledger.Ledger) error {
			for _, e := range c.events {
				l.Add(e)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		shot := Take(context.Background(), s)
		if shot.Boot != c.kind || !strings.Contains(shot.Why, c.want) || c.not != "" && strings.Contains(shot.Why, c.not) {
			t.Errorf("%s: boot %q, why %q; want %q and not %q", name, shot.Boot, shot.Why, c.want, c.not)
		}
	}
}

// TestLosses: what does not work is said in words.
func TestLosses(t *testing.T) {
	for want, plant := range map[string]func(*Sources){
		"":                                   func(s *Sources) { s.Etc, s.Data = "slot", "writable" },
		"changes of /etc are kept in memory": func(s *Sources) { s.Etc = "memory" },
		"changes of /etc are not in use":     func(s *Sources) { s.Etc, s.Booted.Kind = "memory", boot.KindPristine },
		"cannot be changed":                  func(s *Sources) { s.Etc = "image" },
		"there is no data partition":         func(s *Sources) { s.Data = "missing" },
		"cannot be written":                  func(s *Sources) { s.Data = "read-only" },
	} {
		s := sources(t)
		plant(&s)
		shot := Take(context.Background(), s)
		if want == "" && len(shot.Lost) != 0 || want != "" && (len(shot.Lost) != 1 || !strings.Contains(shot.Lost[0], want)) {
			t.Errorf("lost %q, want %q", shot.Lost, want)
		}
		if (shot.Space == nil) != (s.Data == "missing") {
			t.Errorf("%s: space %v: without a data partition it would be that of the root file system", want, shot.Space)
		}
	}
}

// TestNextBoot: GRUB's own rule says which system starts next.
func TestNextBoot(t *testing.T) {
	for want, state := range map[device.Slot]boot.State{
		device.SlotB:  {Phase: boot.Committed, Rootfs: device.SlotB, Tries: 3},
		device.SlotA:  {Phase: boot.Committed, Rootfs: device.SlotB, Rung: boot.RungPristine, Other: true},
		device.Rescue: {Phase: boot.Committed, Rootfs: device.SlotB, Rung: boot.RungPristine},
	} {
		s := sources(t)
		s.Boot = states{state: state}
		if shot := Take(context.Background(), s); shot.NextBoot != want {
			t.Errorf("%s: next boot %s, want %s", state, shot.NextBoot, want)
		}
	}
}
