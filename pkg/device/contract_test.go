package device_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/test/gate"
)

// asked is the network as the gate asks for it.
type asked struct{ *device.Network }

func (n asked) Facts(ctx context.Context) (health.Network, error) {
	f, err := n.Network.Facts(ctx)
	return health.Network(f), err
}

// TestNetworkContract puts the reader of the kernel's files through the suite of the
// gate's fake.
func TestNetworkContract(t *testing.T) {
	const socket = " 00000000:00000000 00:00000000 00000000     0        0 "
	gate.NetworkSuite(t, func(t *testing.T) gate.NetworkRig {
		dir := t.TempDir()
		write := func(files map[string]string) {
			for name, text := range files {
				path := filepath.Join(dir, name)
				err := os.MkdirAll(filepath.Dir(path), 0o755)
				if err == nil {
					err = os.WriteFile(path, []byte(text), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		link := func(name, target string) {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, path); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
		return gate.NetworkRig{
			Network: asked{&device.Network{Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys"), Run: filepath.Join(dir, "run")}},
			Come: func() {
				write(map[string]string{
					"proc/net/route":             "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\neth1\t0000010A\t050200C0\t0003\t0\t0\t0\t0000FFFF\n",
					"proc/net/tcp":               "0: 00000000:0016 00000000:0000 0A" + socket + "7\n",
					"proc/net/udp":               "0: 0100007F:0143 00000000:0000 07" + socket + "8\n",
					"proc/5/cgroup":              "0::/system.slice/ssh.service\n",
					"proc/6/cgroup":              "0::/system.slice/chrony.service\n",
					"sys/class/net/eth0/carrier": "1\n", "sys/class/net/eth2/carrier": "0\n",
				})
				link("proc/5/fd/3", "socket:[7]")
				link("proc/6/fd/3", "socket:[8]")
			},
			Go: func() {
				write(map[string]string{"proc/net/route": "", "proc/net/tcp": "", "proc/net/udp": "", "sys/class/net/eth2/carrier": "1\n"})
			},
		}
	})
}
