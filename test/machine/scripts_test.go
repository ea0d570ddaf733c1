package machine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/test/need"
)

// stage is a place where a script of an initial RAM disk runs with a kernel command
// line, devices and programs of the test's choice, in a mount namespace of its own.
type stage struct {
	*testing.T
	dir string
}

// setting is what every script finds: programs of the test before those of the
// host, and nothing of the host in /dev, /run, /sys/class/net and /etc/resolv.conf.
const setting = `set -e
cd "$1"
mount --bind cmdline /proc/cmdline
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /sys/class/net
cp -r net/. /sys/class/net/
: >resolv.conf
mount --bind resolv.conf "$(realpath /etc/resolv.conf)"
mount -t tmpfs tmpfs /dev
mknod /dev/null c 1 3
[ ! -e watchdog ] || mknod /dev/watchdog c 1 3
PATH=$1/bin:$PATH
shift
exec "$@"
`

func newStage(t *testing.T) *stage {
	t.Helper()
	need.Long(t)
	need.Root(t)
	need.Tool(t, "unshare")
	s := &stage{t, t.TempDir()}
	for _, dir := range []string{"bin", "net"} {
		s.check(os.Mkdir(filepath.Join(s.dir, dir), 0o755))
	}
	s.write("setting", setting)
	return s
}

func (s *stage) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *stage) write(name, text string) {
	s.Helper()
	path := filepath.Join(s.dir, name)
	s.check(os.MkdirAll(filepath.Dir(path), 0o755))
	s.check(os.WriteFile(path, []byte(text), 0o755)) // #nosec some are run
}

// program replaces a program; it notes its arguments, and does more.
func (s *stage) program(name, more string) {
	s.Helper()
	s.write("bin/"+name, fmt.Sprintf("#!/bin/sh\necho %s \"$@\" >>%s/called\n%s\n", name, s.dir, more))
}

// run runs a script of images/ and returns what it said, what it called, and how it
// ended.
func (s *stage) run(cmdline string, command ...string) (said string, called []string, err error) {
	s.Helper()
	s.write("cmdline", cmdline+"\n")
	s.write("called", "")
	args := append([]string{"--mount", "--propagation", "private", "sh", filepath.Join(s.dir, "setting"), s.dir}, command...)
	out, err := exec.Command("unshare", args...).CombinedOutput()
	text, failed := os.ReadFile(filepath.Join(s.dir, "called"))
	s.check(failed)
	return string(out), strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), err
}

func script(name string) string { return filepath.Join(need.Top(), "images", name) }

// The watchdog gets five minutes, or what the command line says within what every
// driver takes.
func TestInitrdWatchdog(t *testing.T) {
	s := newStage(t)
	s.program("modprobe", "")
	for cmdline, want := range map[string]string{
		"root=x quiet":                            "300",
		"root=x osctl.watchdog=120 quiet":         "120",
		"osctl.watchdog=7":                        "7",
		"osctl.watchdog=600":                      "600",
		"osctl.watchdog=601":                      "600",
		"osctl.watchdog=99999999999999999999":     "600",
		"osctl.watchdog=":                         "300",
		"osctl.watchdog=-5":                       "300",
		"osctl.watchdog=2m":                       "300",
		"osctl.watchdog=*":                        "300",
		"osctl.watchdog=1 osctl.watchdog=90":      "90",
		"osctl.watchdog=0":                        "",
		"osctl.watchdog=60 osctl.watchdog=0 root": "",
	} {
		said, called, err := s.run(cmdline, "sh", script("initramfs/watchdog"))
		wants := []string{"modprobe -q i6300esb heartbeat=" + want, "modprobe -q iTCO_wdt heartbeat=" + want,
			"modprobe -q sp5100_tco heartbeat=" + want, "modprobe -q wdat_wdt timeout=" + want}
		if want == "" {
			wants = []string{""}
		}
		if diff := cmp.Diff(wants, called); diff != "" || err != nil || said != "" {
			t.Errorf("%q (-want +got):\n%s%s, %v", cmdline, diff, said, err)
		}
	}
	if _, called, err := s.run("", "sh", script("initramfs/watchdog"), "prereqs"); err != nil || called[0] != "" {
		t.Errorf("asked for what it needs: %v, %q", err, called)
	}
	// With a device: it is opened.
	need.Tool(t, "strace")
	s.write("watchdog", "")
	if _, _, err := s.run("", "strace", "-o", filepath.Join(s.dir, "trace"), "-e", "trace=openat,open,close,write", "sh", script("initramfs/watchdog")); err != nil {
		t.Fatal(err)
	}
	trace, err := os.ReadFile(filepath.Join(s.dir, "trace"))
	s.check(err)
	if !regexp.MustCompile(`"/dev/watchdog", O_WRONLY`).Match(trace) {
		t.Errorf("the device is not opened:\n%s", trace)
	}
}

// The rescue system's process 1 feeds the watchdog while osctl works, waits and
// ends, and gives it up when it hangs.
func TestRescueAttends(t *testing.T) {
	s := newStage(t)
	text, err := os.ReadFile(script("rescue/init"))
	s.check(err)
	attend := regexp.MustCompile(`(?ms)^attend\(\) \{$.*?^\}$`).Find(text)
	if attend == nil {
		t.Fatal("images/rescue/init has no function attend")
	}
	feeds := filepath.Join(s.dir, "feeds")
	fed := func(times int) string {
		return fmt.Sprintf("until [ $(wc -l <%s) -ge %d ]; do sleep 0.02; done; ", feeds, times)
	}
	for name, c := range map[string]struct {
		process string
		limit   int
		exit    string
		fed     int // at least
	}{
		"ends well":    {fed(2) + "exit 0", 1000, "0", 2},
		"fails":        {fed(2) + "exit 7", 1000, "7", 2},
		"ended before": {"exit 3", 1000, "3", 0},
		"is busy":      {fed(40) + "exit 5", 25, "5", 40},
		"hangs":        {"exec sleep 1000", 4, "100", 4},
	} {
		s.write("feeds", "")
		s.write("try", fmt.Sprintf("beat=0.1 limit=%d\nfeed() { echo fed; echo >>%s; }\n%s\nsh -c '%s' &\npid=$!\n[ '%s' != 'ended before' ] || sleep 0.2\nattend $pid\necho exit $?\nkill -9 $pid 2>&-\nexit 0\n",
			c.limit, feeds, attend, c.process, name))
		said, _, err := s.run("", "sh", filepath.Join(s.dir, "try"))
		if !strings.HasSuffix(said, "exit "+c.exit+"\n") || strings.Count(said, "fed\n") < c.fed || err != nil {
			t.Errorf("a process that %s: %v\n%s", name, err, said)
		}
	}
	// One that rests, for less than the limit each time: two looks of three are alike.
	s.write("try", fmt.Sprintf("feed() { :; }\n%s\nlimit=4 n=0\nkill() { n=$((n + 1)); [ $n -le 30 ]; }\ncat() { echo $((n / 3)); }\nsleep() { :; }\nwait() { return 5; }\nattend 1\necho exit $?\n", attend))
	if said, _, err := s.run("", "sh", filepath.Join(s.dir, "try")); said != "exit 5\n" || err != nil {
		t.Errorf("a process that rests now and then: %v\n%s", err, said)
	}
}

// It opens the watchdog once, where there is one, and not where it is told not to.
func TestRescueArms(t *testing.T) {
	s := newStage(t)
	text, err := os.ReadFile(script("rescue/init"))
	s.check(err)
	arm := regexp.MustCompile(`(?ms)^arm\(\) \{$.*?^\}$`).Find(text)
	if arm == nil {
		t.Fatal("images/rescue/init has no function arm")
	}
	s.write("try", fmt.Sprintf("feed() { echo unfed; }\n%s\narm\nfeed\narm\nfeed\nset -- /proc/$$/fd/9\n[ ! -e $1 ] || readlink $1\n", arm))
	for _, c := range []struct {
		cmdline string
		there   bool
		want    string
	}{
		{"quiet", false, "unfed\nunfed\n"},
		{"quiet", true, "/dev/watchdog\n"},
		{"osctl.watchdog=0", true, "unfed\nunfed\n"},
		{"osctl.watchdog=0 quiet", true, "unfed\nunfed\n"},
		{"osctl.watchdog=060 quiet", true, "/dev/watchdog\n"},
	} {
		if c.there {
			s.write("watchdog", "")
		}
		if said, _, err := s.run(c.cmdline, "sh", filepath.Join(s.dir, "try")); said != c.want || err != nil {
			t.Errorf("%q, a watchdog: %t: %q, %v; want %q", c.cmdline, c.there, said, err, c.want)
		}
	}
}

// The rescue system mounts what is named as this machine's, unless two disks are; then
// it says which.
func TestRescuePartitions(t *testing.T) {
	s := newStage(t)
	text, err := os.ReadFile(script("rescue/init"))
	s.check(err)
	functions := regexp.MustCompile(`(?ms)^(named|partition)\(\) \{$.*?^\}$`).FindAll(text, -1)
	if len(functions) != 2 {
		t.Fatal("images/rescue/init has no functions named and partition")
	}
	s.write("try", fmt.Sprintf("mount -t tmpfs tmpfs /sys/class/block\ncp -r %s/disks/. /sys/class/block/\n%s\npartition $1\n", s.dir, bytes.Join(functions, []byte("\n"))))
	for device, label := range map[string]string{"sda1": "boot", "sda2": "rootfsA", "vda1": "boot", "vda5": "data", "vda6": "bootx"} {
		s.write("disks/"+device+"/uevent", "DEVNAME="+device+"\nPARTNAME="+label+"\nPARTN=1\n")
	}
	s.write("disks/sda/uevent", "DEVNAME=sda\n")
	for label, want := range map[string]string{
		"data":    "/dev/vda5\n",
		"rootfsA": "/dev/sda2\n",
		"boot":    "osctl rescue: several partitions are named boot: /dev/sda1 /dev/vda1 - detach the disk that does not belong here\n",
		"rescue":  "",
	} {
		said, _, err := s.run("", "sh", filepath.Join(s.dir, "try"), label)
		if found := strings.HasPrefix(want, "/dev/"); said != want || (err == nil) != found {
			t.Errorf("%s: %q, %v; want %q", label, said, err, want)
		}
	}
}

// The data partition is mounted in the first way that works, as in a slot: another
// file system than ext4, and one that only can be read, tell of this machine too.
func TestRescueData(t *testing.T) {
	s := newStage(t)
	text, err := os.ReadFile(script("rescue/init"))
	s.check(err)
	function := regexp.MustCompile(`(?ms)^mount_data\(\) \{$.*?^\}$`).Find(text)
	if function == nil {
		t.Fatal("images/rescue/init has no function mount_data")
	}
	const cannot = "osctl rescue: the data partition /dev/vda5 cannot be mounted\n"
	for works, want := range map[string]string{
		"-t ext4 -o noatime":   "mounted\n",
		"-t btrfs -o noatime":  "mounted\n",
		"-t ext4 -o ro":        "mounted\n",
		"-t ext4 -o ro,noload": "mounted\n",
		"-t btrfs -o ro":       "mounted\n",
		"-t vfat -o noatime":   cannot,
		"":                     cannot,
	} {
		s.write("try", fmt.Sprintf("mount() { [ \"$*\" = '%s /dev/vda5 /data' ]; }\n%s\nmount_data /dev/vda5 && echo mounted\n", works, function))
		said, _, err := s.run("", "sh", filepath.Join(s.dir, "try"))
		if said != want || (err == nil) != (want == "mounted\n") {
			t.Errorf("where only %q works: %q, %v", works, said, err)
		}
	}
}

// The network comes up by DHCP on every Ethernet port, or as ip= says; what does not
// answer is a failure, and the next attempt begins anew.
func TestRescueNetwork(t *testing.T) {
	s := newStage(t)
	s.program("ip", "")
	answer := func(text string) { s.program("ipconfig", "printf '"+text+"' >/run/net-eth1.conf") }
	const static = `DEVICE=eth1\nIPV4ADDR=10.1.2.3\nIPV4GATEWAY=10.1.2.1\nIPV4DNS0=10.1.2.53\nIPV4DNS1=0.0.0.0\n`
	answer(static)
	network := script("rescue/network")
	s.write("net/lo/type", "772\n")
	if said, called, err := s.run("quiet", "sh", network); err == nil || said != "network: there is no Ethernet port\n" {
		t.Errorf("without a port: %v, %q, %s", err, called, said)
	}
	for port, kind := range map[string]string{"eth0": "1", "eth1": "1", "tunl0": "768"} {
		s.write("net/"+port+"/type", kind+"\n")
	}
	ups := []string{"ip link set eth0 up", "ip link set eth1 up", "ip link set lo up"}
	for cmdline, want := range map[string]string{
		"quiet":          "ipconfig -t 20 -c dhcp eth0 eth1",
		"ip=dhcp":        "ipconfig -t 20 -c dhcp eth0 eth1",
		"ip=off ip=dhcp": "ipconfig -t 20 -c dhcp eth0 eth1",
		"a ip=10.1.2.3::10.1.2.1:255.255.255.0:gate:eth1:none:10.1.2.53 b": "ipconfig -t 20 10.1.2.3::10.1.2.1:255.255.255.0:gate:eth1:none:10.1.2.53",
	} {
		said, called, err := s.run(cmdline, "sh", network)
		if diff := cmp.Diff(append(ups[:3:3], want), called); diff != "" || err != nil {
			t.Errorf("%q (-want +got):\n%s%v", cmdline, diff, err)
		}
		if said != "network: eth1 has 10.1.2.3, gateway 10.1.2.1\n" {
			t.Errorf("%q: it says %q", cmdline, said)
		}
		resolv, err := os.ReadFile(filepath.Join(s.dir, "resolv.conf"))
		if err != nil || string(resolv) != "nameserver 10.1.2.53\n" {
			t.Errorf("%q: resolv.conf is %q, %v", cmdline, resolv, err)
		}
	}
	s.program("ipconfig", "exit 1")
	if said, _, err := s.run("ip=10.1.2.3:::::eth1:none", "sh", network); err == nil || said != "network: no address by 10.1.2.3:::::eth1:none\n" {
		t.Errorf("no answer: %v, %s", err, said)
	}
}
