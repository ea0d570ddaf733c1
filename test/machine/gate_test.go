package machine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The gate's configuration in the stories that are about something else: the default
// would add half a minute to each boot.
const gateFile = "osctl/health.yaml"

// gateOf is that file: the one of the reference image, with other times.
func gateOf(deadline, soak string) string {
	return fmt.Sprintf(`apiVersion: osctl.kapernikov.com/v1
kind: Gate
deadline: %s
soak: %s
units:
  required: [containerd.service, ssh.service, systemd-networkd.service]
`, deadline, soak)
}

// consoleFile has the gate's own words on the console: its journal is gone with the boot,
// and a red gate reboots.
const (
	consoleFile = "systemd/system/osctl-health.service.d/console.conf"
	onConsole   = "[Service]\nStandardOutput=journal+console\nStandardError=journal+console\n"
)

var gateEnd = regexp.MustCompile(`health gate ended.* green=(true|false) took=(\S+) overhead=(\S+)`)

// gate waits for the end of the next gate of osctl-health, and expects each of the lines
// that its table must have, in their order.
func (s *Story) gate(ctx context.Context, green bool, lines ...string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	line, err := s.Machine.Wait(ctx, gateEnd)
	if err != nil {
		return err
	}
	m := gateEnd.FindStringSubmatch(line)
	if m[1] != fmt.Sprint(green) {
		return fmt.Errorf("the gate ended green=%s, expected %t:\n%s", m[1], green, s.Machine.Tail(40))
	}
	for _, line := range lines {
		if err := s.settled(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

// reportGates says what each gate of a machine took, of which it used the processor for
// overhead.
func (s *Site) reportGates(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(s.config().Dir, "console.log"))
	if err != nil {
		t.Error(err)
	}
	for _, m := range gateEnd.FindAllStringSubmatch(string(text), -1) {
		t.Logf("GATE green=%s took=%s overhead=%s", m[1], m[2], m[3])
	}
}
