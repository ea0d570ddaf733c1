package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/disk"
)

// branch is a story that begins with a machine that is off and has 1.1 armed in slot B.
type branch struct {
	name    string
	counted bool                  // its time is that of a processor that nobody disturbs
	lay     func(d offline) error // lays what is going to happen onto the disk
	tell    func(ctx context.Context, s *Story) error
}

func branches() []branch {
	return []branch{
		{"a good image, a service that is late, and what was broken before", true, late, isGood},
		{"the kernel lacks what a service needs", false, poorer, lacksKernel},
		{"a service crashes after 20 s", false, crashing, crashes},
		{"containerd is masked in the new image", false, masked, isMasked},
		{"a check hangs for ever", false, hanging, hangs},
		{"the power fails during the gate, three times", false, unhurried, losesPower},
	}
}

// TestStories tells what an upgrade may do to an application. The machine is installed
// and upgraded once, and each story goes on with a copy of its disk.
func TestStories(t *testing.T) {
	ctx, site := begin(t)
	trunk, err := site.armed(ctx, t)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range branches() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			b.run(ctx, t, trunk)
		})
	}
}

func (b branch) run(ctx context.Context, t *testing.T, trunk *Story) {
	defer chapterEnd(t, time.Now())
	site := *trunk.Site
	site.dir, site.tell, site.Counted = t.TempDir(), logNarrator{t}, b.counted
	s := &Story{Site: &site, tell: site.tell, visits: trunk.visits, shop: trunk.shop}
	if err := site.quiet(ctx, "cp", "--sparse=always", trunk.Site.Disk(), site.Disk()); err != nil {
		t.Fatal(err)
	}
	if err := site.layOnDisk(ctx, b.lay); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.Machine, err = site.Start(ctx, nil); err != nil {
		t.Fatal(err)
	}
	s.closeAtEnd(t)
	if err := b.tell(ctx, s); err != nil {
		t.Fatal(err)
	}
}

// chapterEnd says how long a chapter took.
func chapterEnd(t *testing.T, start time.Time) {
	t.Logf("CHAPTER %s took %s", t.Name(), time.Since(start).Round(time.Second))
}

// armed is a machine with the application, switched off when 1.1 was armed.
func (s *Site) armed(ctx context.Context, t *testing.T) (*Story, error) {
	defer chapterEnd(t, time.Now())
	if err := s.pushShop(ctx); err != nil {
		return nil, err
	}
	story, err := Begin(ctx, s, nil)
	if err != nil {
		return nil, err
	}
	story.closeAtEnd(t)
	for _, chapter := range []func(context.Context) error{story.openShop, story.shopInOrder, story.breakSomething, story.armGood} {
		if err := chapter(ctx); err != nil {
			return nil, err
		}
	}
	return story, errors.Join(story.Machine.PowerOff(ctx), story.Machine.Close())
}

func (s *Story) armGood(ctx context.Context) error {
	_, err := s.run(ctx, "osctl upgrade --progress none "+s.Site.Ref("os:1.1"), 0, "reference 1.1 is in slot B and starts at the next boot, on trial")
	if err != nil {
		return err
	}
	return s.told(ctx, "1.1 in slot B starts at the next boot, on trial", `osctl_state{state="armed"} 1`)
}

// offline is the disk of a machine that is off, mounted on the host.
type offline struct {
	data string // the data partition
	b    string // slot B
}

// write makes a file, by its path below one of the folders.
func (o offline) write(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o755) // #nosec some are run
}

// etc is a file of the /etc that the new system will have.
func (o offline) etc(name string) string { return filepath.Join(o.data, "etc", "B", "upper", name) }

// order tells a service what to do wrong.
func (o offline) order(order string) error {
	found, err := filepath.Glob(filepath.Join(o.data, "nerdctl", "*", shopVolume))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the volume of the application: %q, %w", found, err)
	}
	f, err := os.OpenFile(filepath.Join(found[0], "orders"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, order)
	return errors.Join(err, f.Close())
}

// layOnDisk mounts the disk of the machine that is off and changes it.
func (s *Site) layOnDisk(ctx context.Context, lay func(offline) error) error {
	o := offline{data: filepath.Join(s.dir, "data"), b: filepath.Join(s.dir, "slotB")}
	layout := disk.DefaultLayout()
	layout.Slot = slotSize
	parts, err := layout.Place(diskSize)
	if err != nil {
		return err
	}
	var undo []func() error
	err = func() error {
		for _, p := range parts {
			dir, wanted := map[string]string{disk.LabelData: o.data, disk.LabelSlotB: o.b}[p.Label]
			if !wanted {
				continue
			}
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			options := fmt.Sprintf("loop,offset=%d,sizelimit=%d", p.Offset, p.Size)
			if err := s.quiet(ctx, "mount", "-o", options, s.Disk(), dir); err != nil {
				return err
			}
			undo = append(undo, func() error { return s.quiet(context.WithoutCancel(ctx), "umount", dir) })
		}
		return lay(o)
	}()
	for _, u := range undo {
		err = errors.Join(err, u())
	}
	return err
}

// told expects what those read who do not ask: the line for the console, the greeting and
// the metrics.
func (s *Story) told(ctx context.Context, line string, metrics ...string) error {
	if _, err := s.run(ctx, "cat /run/issue.d/osctl.issue", 0, line); err != nil {
		return err
	}
	if _, err := s.run(ctx, "cat /run/motd.d/osctl", 0, line); err != nil {
		return err
	}
	_, err := s.run(ctx, "grep -v '^#' /run/osctl/metrics/osctl.prom", 0, metrics...)
	return err
}

// fellBack expects the machine in the slot that it came from, that it says why to
// everybody, and the application as it was.
func (s *Story) fellBack(ctx context.Context, reasons ...string) error {
	if err := s.settled(ctx, `osctl: slot A \(fallback\)`); err != nil {
		return err
	}
	if err := s.gate(ctx, true); err != nil {
		return err
	}
	if err := s.settled(ctx, `recorded the fall back: slot B: `); err != nil {
		return err
	}
	status := append([]string{"reference runs 1.0 from slot A, committed", "failed its trial", "Failed  1.1"}, reasons...)
	out, err := s.run(ctx, "osctl status", 0, status...)
	if err != nil {
		return err
	}
	if strings.Contains(out, "Problem") {
		return fmt.Errorf("after the fall back there are problems:\n%s", out)
	}
	out, err = s.run(ctx, "osctl history", 0, append([]string{"failed     slot B  1.1"}, reasons...)...)
	if err != nil {
		return err
	}
	if strings.Contains(out, "not as before") {
		return fmt.Errorf("the fall back brought not all back:\n%s", out)
	}
	err = s.told(ctx, "osctl: reference 1.0 (slot A): committed; fell back from 1.1 because ",
		`osctl_state{state="committed"} 1`, `osctl_last_result{result="failed"} 1`, "osctl_gate_green 1")
	if err != nil {
		return err
	}
	return s.shopInOrder(ctx)
}

// late has a service that takes its time to come up.
func late(o offline) error { return o.order("1.1 web late " + lateness.String()) }

const lateness = 30 * time.Second

func isGood(ctx context.Context, s *Story) error {
	if err := s.gate(ctx, true, `GREEN after`, `committed: slot B`); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl status", 0, "reference runs 1.1 from slot B, committed"); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl history", 0, "committed  slot B  1.1"); err != nil {
		return err
	}
	return s.greenForGoodReasons(ctx)
}

// poorer has the new image without a module of its kernel: db needs no network.
func poorer(o offline) error {
	found, err := filepath.Glob(filepath.Join(o.b, "usr/lib/modules/*/kernel/drivers/net/veth.ko"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the module: %q, %w", found, err)
	}
	return errors.Join(os.Remove(found[0]), o.write(o.etc(gateFile), gateOf("100s", "5s")))
}

func lacksKernel(ctx context.Context, s *Story) error {
	if err := s.gate(ctx, false, `RED after`, `rolled back: slot B: .*`+webService); err != nil {
		return err
	}
	if err := s.fellBack(ctx, webService+": "); err != nil {
		return err
	}
	out, err := s.run(ctx, "osctl history", 0)
	if err == nil && strings.Contains(out, dbService) {
		err = fmt.Errorf("%s, which needs no network, is blamed", dbService)
	}
	return err
}

// crashing leaves the soak as it is by default, which is longer than the service lives.
func crashing(o offline) error {
	return errors.Join(o.order("1.1 db crash 20s"), o.write(o.etc(gateFile), gateOf("150s", "30s")))
}

func crashes(ctx context.Context, s *Story) error {
	err := s.gate(ctx, false, `RED after`, `workload +`+dbService+` +required +NO `, `rolled back: slot B: .*`+dbService+`: .*started again`)
	if err != nil {
		return err
	}
	return s.fellBack(ctx, dbService+": ", "started again")
}

// masked has the new image without a containerd that could start.
func masked(o offline) error {
	return errors.Join(os.Symlink("/dev/null", filepath.Join(o.b, "etc/systemd/system/containerd.service")),
		o.write(o.etc(gateFile), gateOf("40s", "5s")))
}

func isMasked(ctx context.Context, s *Story) error {
	if err := s.gate(ctx, false, `RED after`, `rolled back: slot B: .*containerd.service: .*masked`); err != nil {
		return err
	}
	return s.fellBack(ctx, "containerd.service: ", "masked", "containerd: ")
}

// hanging is a check of the operator's that never ends, and does not want to. A check has
// a minute for each of its runs.
func hanging(o offline) error {
	const script = "#!/bin/sh\ntrap '' TERM\necho 'waiting for nothing'\nsleep 100000 &\nwait\nsleep 100000\n"
	return errors.Join(o.write(o.etc("greenboot/check/required.d/10-hangs.sh"), script), o.write(o.etc(gateFile), gateOf("75s", "5s")))
}

func hangs(ctx context.Context, s *Story) error {
	const reason = "required.d/10-hangs.sh: has not ended within 1m0s; killed "
	if err := s.gate(ctx, false, `RED after`, `rolled back: slot B: .*`+reason); err != nil {
		return err
	}
	return s.fellBack(ctx, reason)
}

// unhurried has a gate that does not end before the power does.
func unhurried(o offline) error { return o.write(o.etc(gateFile), gateOf("20m", "15m")) }

func losesPower(ctx context.Context, s *Story) error {
	for left := 2; left >= 0; left-- {
		for _, line := range []string{`osctl: slot B \(trial\)`, `health check changed`} { // the second after its first look
			if err := s.settled(ctx, line); err != nil {
				return err
			}
		}
		if left == 2 {
			if err := s.onTrial(ctx); err != nil {
				return err
			}
		}
		if err := s.Machine.Reset(ctx); err != nil {
			return err
		}
	}
	return s.fellBack(ctx, "it used up its boots without reaching the gate's verdict")
}

// onTrial looks at a gate that runs.
func (s *Story) onTrial(ctx context.Context) error {
	if _, err := s.run(ctx, "osctl status", 0, "reference runs 1.1 from slot B ON TRIAL, 2 tries left", "Gate", "verdict in at most"); err != nil {
		return err
	}
	return s.told(ctx, "osctl: reference 1.1 (slot B): on trial, 2 tries left, verdict ",
		`osctl_state{state="trial"} 1`, "osctl_tries_left 2", "osctl_gate_running 1")
}
