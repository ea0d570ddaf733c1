package machine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/test/vm"
	"github.com/kapernikov/osctl/test/writelog"
)

// area is a range of the disk, in bytes.
type area struct{ from, to int64 }

func (a area) holds(e writelog.Entry) bool {
	return len(e.Data) > 0 && e.Offset < a.to && e.End() > a.from
}

// The areas of the installation.
var (
	espArea = area{mib, 65 * mib}
	areaOf  = map[string]area{"A": {65 * mib, 65*mib + slotSize}, "B": {65*mib + slotSize, 65*mib + 2*slotSize}}
)

// TestEveryWrite goes through an upgrade, from the command to the commit, with every
// write to the disk logged, and then cuts the power at each of them.
func TestEveryWrite(t *testing.T) {
	ctx, site := begin(t)
	story, err := Begin(ctx, site, nil)
	if err != nil {
		t.Fatal(err)
	}
	story.closeAtEnd(t)
	if err := story.everyWrite(ctx, t); err != nil {
		t.Fatal(err)
	}
}

func (s *Story) everyWrite(ctx context.Context, t *testing.T) error {
	base, log := filepath.Join(s.Site.dir, "base.img"), filepath.Join(s.Site.dir, "writes.log")
	if err := s.upgradeLogged(ctx, base, log); err != nil {
		return err
	}
	if err := s.loseOneWrite(ctx, base, log); err != nil {
		return err
	}
	r, err := s.newReplay(ctx, base, log)
	if err != nil {
		return err
	}
	defer r.close()
	var kept []string
	r.cuts = restarts()
	r.keep = func() error {
		disk := fmt.Sprintf("%s.%d", base, len(kept))
		kept = append(kept, disk)
		return s.Site.quiet(ctx, "cp", "--sparse=always", base, disk)
	}
	if err := r.run(ctx); err != nil {
		return err
	}
	t.Logf("writes of the machine: %d, %d of them to the ESP, %d to slot B; states after a power cut: %d, boots of GRUB: %d; bricked, wrong slot, incomplete: 0",
		r.writes, r.espWrites, r.slotWrites, r.states, r.boots)
	t.Logf("started again after a cut: %d times", len(kept))
	if len(kept) == 0 {
		return errors.New("the machine wrote nothing to the ESP after slot B was armed")
	}
	for i, disk := range kept {
		if err := s.goOnAfterCut(ctx, disk, i >= len(r.cuts.slot)); err != nil {
			return fmt.Errorf("after the power cut of %s: %w", filepath.Base(disk), err)
		}
	}
	return nil
}

// cuts are instants of an upgrade, for a cut of the power.
type cuts struct {
	slot []int // counts of writes to slot B: that one has arrived, and nothing after it
	esp  []int // counts of writes to the ESP from arming on: that one is torn
}

// restarts are the instants at which a machine is not only judged but started again:
// one of those at which GRUB saves its state, and in the long run more, spread over
// the whole upgrade. A restart takes two minutes.
func restarts() cuts {
	if !exhaustive() {
		return cuts{esp: []int{4}}
	}
	return cuts{slot: []int{1, 100, 300}, esp: []int{1, 2, 3, 4, 6, 9, 12, 16}}
}

// goOnAfterCut starts the machine with a disk that a power cut has left, before or
// after slot B was armed. It comes up, says the truth, and the same command again
// brings it to 1.1.
func (s *Story) goOnAfterCut(ctx context.Context, disk string, armed bool) error {
	if err := os.Rename(disk, s.Site.Disk()); err != nil {
		return err
	}
	var err error
	if s.Machine, err = s.Site.Start(ctx, nil); err != nil {
		return err
	}
	if err := s.settled(ctx, `committed: slot B|slot [AB] is committed|recorded the fall back`); err != nil {
		return err
	}
	commands := []string{"osctl status", "osctl verify A"}
	if armed {
		commands = append(commands, "osctl verify B")
	}
	for _, command := range commands {
		if _, err := s.run(ctx, command, 0); err != nil {
			return err
		}
	}
	out, err := s.run(ctx, "osctl upgrade --progress none --json --retry "+s.Site.Ref("os:1.1"), 0)
	if err != nil {
		return err
	}
	if !strings.Contains(out, `"staged"`) && !strings.Contains(out, `"up-to-date"`) {
		return fmt.Errorf("the same command again: %s", out)
	}
	return errors.Join(s.Machine.PowerCut(ctx), s.Machine.Close())
}

// loseOneWrite shows that the replay finds an image that is armed though a write to
// its slot never arrived.
func (s *Story) loseOneWrite(ctx context.Context, base, log string) error {
	broken := base + ".broken"
	if err := s.Site.quiet(ctx, "cp", "--sparse=always", base, broken); err != nil {
		return err
	}
	defer os.Remove(broken) //nolint:errcheck // below the test's folder
	r, err := s.newReplay(ctx, broken, log)
	if err != nil {
		return err
	}
	defer r.close()
	// The first ones write zeros over the first block of a slot that is empty.
	r.lose = 40
	if err := r.run(ctx); !errors.Is(err, errIncomplete) {
		return fmt.Errorf("the replay without one write to the slot ended with %v, expected %v", err, errIncomplete)
	}
	return nil
}

// upgradeLogged upgrades the machine from 1.0 in slot A to 1.1 in slot B. base
// becomes the disk as it was before.
func (s *Story) upgradeLogged(ctx context.Context, base, log string) error {
	if err := errors.Join(s.Machine.PowerOff(ctx), s.Machine.Close()); err != nil {
		return err
	}
	if err := s.Site.quiet(ctx, "cp", "--sparse=always", s.Site.Disk(), base); err != nil {
		return err
	}
	config := s.Site.config()
	config.WriteLog = log
	var err error
	if s.Machine, err = vm.Start(ctx, config); err != nil {
		return err
	}
	if err := s.settled(ctx, `slot A is committed`); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl upgrade --progress none "+s.Site.Ref("os:1.1"), 0, "reference 1.1 is in slot B"); err != nil {
		return err
	}
	if err := s.reboot(ctx); err != nil {
		return err
	}
	if err := s.settled(ctx, `committed: slot B`); err != nil {
		return err
	}
	return errors.Join(s.Machine.PowerOff(ctx), s.Machine.Close())
}

// provenSize is the length of 1.1's image in bytes, after a look that slot B of the
// machine's disk holds that image in the end.
func (s *Story) provenSize(ctx context.Context) (int64, error) {
	layout, err := fetch.OpenLayout(filepath.Join(s.Site.dir, "os-1.1"))
	if err != nil {
		return 0, err
	}
	defer layout.Close() //nolint:errcheck // read only
	ref, err := layout.Resolve(ctx, "")
	if err != nil {
		return 0, err
	}
	img, err := ref.Describe(ctx)
	if err != nil {
		return 0, err
	}
	disk, err := os.Open(s.Site.Disk())
	if err != nil {
		return 0, err
	}
	defer disk.Close() //nolint:errcheck // read only
	want := img.Config().Rootfs
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(disk, areaOf["B"].from, want.Size)); err != nil {
		return 0, err
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); got != want.Digest.String() {
		return 0, fmt.Errorf("slot B holds %s in the end, expected %s", got, want.Digest)
	}
	return want.Size, nil
}
