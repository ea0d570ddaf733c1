package device

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// plant makes the kernel's files of a machine: names ending in "->" are symbolic
// links to their text.
func plant(t *testing.T, files map[string]string) *Network {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, strings.TrimSuffix(name, "->"))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil && strings.HasSuffix(name, "->") {
			err = os.Symlink(text, path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Network{Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys"), Run: filepath.Join(dir, "run")}
}

func facts(t *testing.T, files map[string]string) NetworkFacts {
	t.Helper()
	got, err := plant(t, files).Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRoutes(t *testing.T) {
	got := facts(t, map[string]string{
		// As amd64 writes them: 192.0.2.1 is 010200C0.
		"proc/net/route": "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT   \n" +
			"eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0    \n" +
			"eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0    \n" +
			"ppp0\t00000000\t00000000\t0001\t0\t0\t9\t00000000\t0\t0\t0    \n" +
			"eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0    \n" + // on the link
			"eth1\t0000010A\t050200C0\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0    \n" +
			"eth2\t00000000\t010200C0\t0002\t0\t0\t0\t00000000\t0\t0\t0    \n" + // down
			"*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0    \n", // refused
		"proc/net/ipv6_route": "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n" +
			"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     eth0\n" +
			"fd010000000000000000000000000000 40 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     eth1\n" +
			"fd000000000000000000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000004 00000000 80200001     eth0\n" +
			"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n",
	})
	want := NetworkFacts{Routes: []string{
		"ipv4 10.1.0.0/16 dev eth1", "ipv4 default dev eth0", "ipv4 default dev ppp0",
		"ipv6 default dev eth0", "ipv6 fd01::/64 dev eth1",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestUnplugged(t *testing.T) {
	got := facts(t, map[string]string{
		"sys/class/net/eth1/carrier": "0\n", "sys/class/net/eth0/carrier": "0\n", "sys/class/net/eth2/carrier": "1\n",
		// An interface that is not up: the kernel answers EINVAL.
		"sys/class/net/eth3/carrier->": "/proc/self/none",
	})
	if diff := cmp.Diff(NetworkFacts{Unplugged: []string{"eth0", "eth1"}}, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

// socket is a line of /proc/net/tcp and its like.
func socket(local, state, inode string) string {
	return "   0: " + local + " 00000000:0000 " + state + " 00000000:00000000 00:00000000 00000000     0        0 " + inode + " 1 00000000e461ed79 100 0 0 10 0\n"
}

const any6, local6 = "00000000000000000000000000000000", "00000000000000000000000001000000"

func TestListening(t *testing.T) {
	got := facts(t, map[string]string{
		"proc/net/tcp": "  sl  local_address rem_address   st tx_queue\n" +
			socket("00000000:0016", "0A", "101") + // sshd
			socket("0100007F:0277", "0A", "102") + // cups on 127.0.0.1:631
			socket("0500000A:0050", "0A", "103") + // bound to 10.0.0.5
			socket("00000000:9C40", "0A", "104") + // 40000, which is handed out
			socket("00000000:1F90", "0A", "105") + // 8080, of a container in the host's network
			socket("00000000:1F91", "0A", "106") + // of a session
			socket("00000000:1F92", "0A", "107") + // of osctl
			socket("00000000:1F93", "0A", "108") + // of a transient unit
			socket("00000000:006F", "0A", "109") + // systemd holds 111 for a service
			socket("00000000:14EB", "0A", "110") + // LLMNR
			socket("00000000:1F94", "0A", "111") + // 8084, the kernel's own
			socket("0100007F:0016", "01", "112"), // a connection
		"proc/net/tcp6": socket(any6+":0016", "0A", "201") + socket(local6+":0050", "0A", "202") +
			socket("0000000000000000FFFF00000100007F:0051", "0A", "203"), // ::ffff:127.0.0.1
		"proc/net/udp": socket("00000000:007B", "07", "301") + // NTP
			socket("00000000:0044", "07", "302") + socket("00000000:14E9", "07", "303") + // DHCP, mDNS
			socket("0100007F:0044", "01", "304"),
		"proc/sys/net/ipv4/ip_local_port_range": "40000\t41000\n",

		"proc/1/cgroup": "0::/init.scope\n", "proc/1/fd/5->": "socket:[109]",
		"proc/20/cgroup": "12:cpu:/elsewhere\n1:name=systemd:/system.slice/ssh.service\n", "proc/20/fd/3->": "socket:[101]", "proc/20/fd/4->": "socket:[201]",
		"proc/20/fd/0->": "/dev/null", "proc/20/fd/5->": "socket:[112]",
		// A process that another service started has the socket of the first one too.
		"proc/19/cgroup": "0::/system.slice/zz.service\n", "proc/19/fd/3->": "socket:[101]",
		"proc/30/cgroup": "0::/system.slice/system-print.slice/cups@1.service/worker\n", "proc/30/fd/3->": "socket:[102]", "proc/30/fd/4->": "socket:[103]",
		"proc/30/fd/5->": "socket:[104]", "proc/30/fd/6->": "socket:[110]", "proc/30/fd/7->": "socket:[202]", "proc/30/fd/8->": "socket:[203]",
		"proc/40/cgroup": "0::/system.slice/nerdctl-0123.scope\n", "proc/40/fd/3->": "socket:[105]",
		"proc/41/cgroup": "0::/user.slice/user-0.slice/session-1.scope\n", "proc/41/fd/3->": "socket:[106]",
		"proc/42/cgroup": "0::/system.slice/osctl-agent.service\n", "proc/42/fd/3->": "socket:[107]",
		"proc/43/cgroup": "0::/system.slice/run-u12.service\n", "proc/43/fd/3->": "socket:[108]",
		"run/systemd/transient/run-u12.service": "",
		"proc/44/cgroup":                        "0::/default/0123/system.slice/web.service\n", "proc/44/fd/3->": "socket:[105]",
		"proc/50/cgroup": "0::/system.slice/ntp.service\n", "proc/50/fd/3->": "socket:[301]", "proc/50/fd/4->": "socket:[302]", "proc/50/fd/5->": "socket:[303]",
		"proc/self/cgroup": "0::/system.slice/self.service\n", "proc/self/fd/3->": "socket:[111]",
	})
	want := NetworkFacts{Listening: []string{
		"tcp/111 systemd", "tcp/22 ssh.service", "tcp/localhost:631 cups@1.service",
		"tcp/localhost:80 cups@1.service", "tcp/localhost:81 cups@1.service", "udp/123 ntp.service",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

// What cannot be understood is no empty network.
func TestNetworkThatCannotBeRead(t *testing.T) {
	for want, files := range map[string]map[string]string{
		`line "eth0 x"`:                         {"proc/net/route": "eth0 x\n"},
		`parsing "z"`:                           {"proc/net/route": "eth0\t00000000\t00000000\tz\t0\t0\t0\t00000000\n"},
		"a route of 1 fields":                   {"proc/net/ipv6_route": "00\n"},
		"reading the listening sockets: ":       {"proc/net/tcp": socket("0000:0016", "0A", "1")},
		"reading the routes: read ":             {"proc/net/route/x": ""},
		"value out of range":                    {"proc/net/udp6": socket(any6+":10000", "07", "1")},
		"reading the listening sockets: contex": {"proc/net/tcp": socket("00000000:0016", "0A", "1"), "proc/1/cgroup": "0::/init.scope\n"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		got, err := plant(t, files).Facts(ctx)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q; facts %+v", err, want, got)
		}
		if strings.HasSuffix(want, "contex") && !errors.Is(err, context.Canceled) {
			t.Errorf("error %v is not that of the context", err)
		}
	}
}

// The files of this very machine have the format.
func TestNetworkOfThisMachine(t *testing.T) {
	if _, err := new(Network).Facts(t.Context()); err != nil {
		t.Error(err)
	}
}

// The processes are looked through only for sockets that were not there before; while
// systemd holds one, or nobody is found to, always: that may change with the sockets
// as they are.
func TestHoldersAreRemembered(t *testing.T) {
	for name, tt := range map[string]struct {
		group, want string // of the process; what is seen when it is gone
	}{
		"a service": {"0::/system.slice/ssh.service\n", "tcp/22 ssh.service"},
		"systemd":   {"0::/init.scope\n", ""},
		"nobody":    {"0::/user.slice\n", ""},
	} {
		n := plant(t, map[string]string{
			"proc/net/tcp": socket("00000000:0016", "0A", "7"), "proc/1/cgroup": tt.group, "proc/1/fd/3->": "socket:[7]",
		})
		look := func() string {
			f, err := n.Facts(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(f.Listening, ", ")
		}
		look()
		if err := os.RemoveAll(filepath.Join(n.Proc, "1")); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != tt.want {
			t.Errorf("%s: the same sockets: %q, want %q", name, got, tt.want)
		}
		other := socket("00000000:0016", "0A", "8")
		if err := os.WriteFile(filepath.Join(n.Proc, "net/tcp"), []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != "" {
			t.Errorf("%s: another socket: %q", name, got)
		}
	}
}
