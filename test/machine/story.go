package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/kapernikov/osctl/test/vm"
)

// bootLimit is how long a boot and its gate may take under emulation on a busy
// host; the gate itself has a deadline of four minutes.
const bootLimit = 15 * time.Minute

// Story is a machine at a site, and what it has been through.
type Story struct {
	Site    *Site
	Machine *vm.Machine
	tell    Narrator
	visits  int
	shop    string // what the services of the shop ran with at first
}

// Begin installs the machine, boots it and waits for its first gate.
func Begin(ctx context.Context, site *Site, console io.Writer) (*Story, error) {
	if err := site.Install(ctx); err != nil {
		return nil, err
	}
	site.tell.Title("Switch the machine on")
	m, err := site.Start(ctx, console)
	if err != nil {
		return nil, err
	}
	s := &Story{Site: site, Machine: m, tell: site.tell}
	if err := s.settled(ctx, `nothing to do: slot A: slot A is committed`); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return s, nil
}

// Tell is the whole story of the demonstration.
func (s *Story) Tell(ctx context.Context) error {
	for _, chapter := range []func(context.Context) error{
		s.firstLook, s.runApplication, s.refuseStrangers, s.upgrade, s.upgradeToBroken,
	} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

// settled waits for what osctl-settle says on the console at the end of a boot.
func (s *Story) settled(ctx context.Context, line string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	found, err := s.Machine.Wait(ctx, regexp.MustCompile(line))
	if err != nil {
		return fmt.Errorf("waiting for %q: %w", line, err)
	}
	fmt.Fprintf(s.tell.Output(), "console: %s\n", strings.TrimSpace(found))
	return nil
}

// run runs a command on the machine, shows it, and expects an exit code and texts
// in its output.
func (s *Story) run(ctx context.Context, command string, exit int, want ...string) (string, error) {
	s.tell.Command("machine#", command)
	var out strings.Builder
	both := io.MultiWriter(&out, s.tell.Output())
	code, err := s.Machine.Stream(ctx, command, both, both)
	if err != nil {
		return "", err
	}
	if code != exit {
		return "", fmt.Errorf("%s: exit code %d, expected %d\n%s", command, code, exit, out.String())
	}
	for _, w := range want {
		if !strings.Contains(out.String(), w) {
			return "", fmt.Errorf("%s: expected %q in\n%s", command, w, out.String())
		}
	}
	return out.String(), nil
}

func (s *Story) firstLook(ctx context.Context) error {
	s.tell.Title("What runs?")
	_, err := s.run(ctx, "osctl status", 0, "reference runs 1.0 from slot A, committed", "slot B: empty")
	return err
}

func (s *Story) runApplication(ctx context.Context) error {
	s.tell.Title("Run an application that keeps its data")
	// In two steps: where nerdctl takes seconds between making a container and starting it,
	// as under emulation, containerd's restart monitor would come in between.
	run := "nerdctl run -d --name web -p 8080:8080 -v /data/web:/data " + s.Site.Ref(Application) + " 2>&1 | tail -1"
	if _, err := s.run(ctx, run, 0); err != nil {
		return err
	}
	if _, err := s.run(ctx, "nerdctl update --restart always web", 0); err != nil {
		return err
	}
	return s.visit(ctx)
}

var visitCount = regexp.MustCompile(`visit (\d+)`)

// visit asks the application for its page. A count that went on shows that
// its data was kept.
func (s *Story) visit(ctx context.Context) error {
	url := "http://" + s.Machine.Addr(8080) + "/"
	s.tell.Command("$", "curl "+url)
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	page, err := get(ctx, url)
	if err != nil {
		return fmt.Errorf("visiting the application: %w", err)
	}
	fmt.Fprint(s.tell.Output(), page)
	m := visitCount.FindStringSubmatch(page)
	if m == nil {
		return fmt.Errorf("the application answered %q", page)
	}
	count, err := strconv.Atoi(m[1])
	if err != nil || count <= s.visits {
		return fmt.Errorf("the application counted visit %s after %d: its data was not kept", m[1], s.visits)
	}
	s.visits = count
	return nil
}

// get asks until the application answers: it starts by itself after a boot.
func get(ctx context.Context, url string) (string, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		page, err := getOnce(ctx, url)
		if err == nil {
			return page, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", err
		}
	}
}

func getOnce(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close() //nolint:errcheck // read only
	page, err := io.ReadAll(answer.Body)
	return string(page), err
}

func (s *Story) refuseStrangers(ctx context.Context) error {
	s.tell.Title("Images that nobody vouches for are refused")
	_, err := s.run(ctx, "osctl upgrade "+s.Site.Ref("unsigned/os:1.1"), 20, "found no signature")
	if err != nil {
		return err
	}
	if _, err = s.run(ctx, "osctl upgrade "+s.Site.Ref("stranger/os:1.1"), 20, "wanted a signature by release"); err != nil {
		return err
	}
	_, err = s.run(ctx, "osctl status | head -1", 0, "reference runs 1.0 from slot A, committed")
	return err
}

func (s *Story) upgrade(ctx context.Context) error {
	s.tell.Title("Upgrade to 1.1")
	if _, err := s.run(ctx, "osctl check "+s.Site.Ref("os:1.1"), 10, "reference 1.1 can be installed (1.0 runs)"); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl upgrade "+s.Site.Ref("os:1.1"), 0, "reference 1.1 is in slot B and starts at the next boot, on trial"); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl status", 0, "1.1 in slot B starts at the next boot", "default/web"); err != nil {
		return err
	}
	s.tell.Title("Reboot, and let the gate decide")
	if err := s.reboot(ctx); err != nil {
		return err
	}
	if err := s.settled(ctx, `committed: slot B`); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl status", 0, "reference runs 1.1 from slot B, committed", "Rollback", "running"); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl health", 0, "GREEN", "ssh.service"); err != nil {
		return err
	}
	return s.visit(ctx)
}

// reboot gives the order and does not wait: the console tells how it goes on.
func (s *Story) reboot(ctx context.Context) error {
	s.tell.Command("machine#", "reboot")
	_, err := s.Machine.Run(ctx, "systemctl --no-block reboot")
	var gone *ssh.ExitMissingError
	if errors.As(err, &gone) {
		return nil // sshd was stopped before it could say how the order ended
	}
	return err
}

func (s *Story) upgradeToBroken(ctx context.Context) error {
	s.tell.Title("Upgrade to 1.2, on which the application cannot start")
	if _, err := s.run(ctx, "osctl upgrade "+s.Site.Ref("os:1.2"), 0, "reference 1.2 is in slot A"); err != nil {
		return err
	}
	if err := s.reboot(ctx); err != nil {
		return err
	}
	if err := s.settled(ctx, `rolled back: slot A: .*default/web.*`); err != nil {
		return err
	}
	s.tell.Title("The machine goes back by itself")
	if err := s.settled(ctx, `recorded the fall back: slot A.*`); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl status", 0, "reference runs 1.1 from slot B, committed", "failed its trial", "default/web"); err != nil {
		return err
	}
	if err := s.visit(ctx); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl upgrade "+s.Site.Ref("os:1.2"), 21, "a failed trial here", "--retry"); err != nil {
		return err
	}
	_, err := s.run(ctx, "osctl history", 0, "failed", "committed", "installed")
	return err
}
