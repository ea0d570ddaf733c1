package rehearsal

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// What the container may take: bytes of memory, and processes. systemd-analyze needs
// some 20 MiB, containerd some 60.
const (
	maxMemory    = 256 << 20
	maxProcesses = 64
)

// programPath is this program in the container.
const programPath = "/osctl"

func (s *stage) root() string { return filepath.Join(s.dir, "root") }

// makeDirs makes the root directory of the container, which has nothing in it but
// places to mount upon, and what a program that is linked dynamically looks for.
func (s *stage) makeDirs() error {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{"root", "out", "root/proc", "root/dev", "root/self", "root/out", "root" + targetRoot, "root" + runningRoot} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{"usr", "lib", "lib64"} {
		if err := os.Symlink("self/"+dir, filepath.Join(s.root(), dir)); err != nil {
			return err
		}
	}
	for _, file := range []string{"root" + programPath, "out/report"} {
		if err := os.WriteFile(filepath.Join(s.dir, file), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// spec is the container, by the OCI runtime specification.
func (s *stage) spec() oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, c *containers.Container, spec *oci.Spec) error {
		spec.Root = &specs.Root{Path: s.root(), Readonly: true}
		spec.Mounts = s.mounts()
		// To enter a system takes the first; nft asks the kernel about the container's
		// own network, in which there is nothing, with the second.
		caps := []string{"CAP_SYS_CHROOT", "CAP_NET_ADMIN"}
		spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
		spec.Process.NoNewPrivileges = true
		spec.Process.Env = nil
		memory, processes := int64(maxMemory), int64(maxProcesses)
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
		spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &processes}
		// The default, /namespace/id, leaves an empty group behind.
		spec.Linux.CgroupsPath = "/" + s.Namespace + "-" + c.ID
		return nil
	}
}

// mounts are all of them, in the order in which the runtime makes them. Sources are
// paths of the machine, of which the last ones are mounts of this very list.
func (s *stage) mounts() []specs.Mount {
	list := []specs.Mount{
		{Type: "proc", Source: "proc", Destination: "/proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Type: "tmpfs", Source: "tmpfs", Destination: "/dev", Options: []string{"nosuid", "noexec", "mode=755", "size=64k"}},
		bind("/", "/self"),
		bind(s.Program, programPath),
		{Type: "bind", Source: filepath.Join(s.dir, "out"), Destination: "/out", Options: []string{"bind", "nosuid", "nodev", "noexec"}},
	}
	list = append(list, s.system(s.target, s.Target.Upper, targetRoot)...)
	return append(list, s.system(s.running, s.Running.Upper, runningRoot)...)
}

func bind(from, to string) specs.Mount {
	return specs.Mount{Type: "bind", Source: from, Destination: to, Options: []string{"bind", "ro", "nosuid", "nodev"}}
}

// system are the mounts of a system: its file system, its /etc, and what a program
// expects of every system.
func (s *stage) system(from fileSystem, upper, to string) []specs.Mount {
	list := []specs.Mount{bind("/", to), bind("/etc", to+"/etc")}
	if from.device != "" {
		options := []string{"ro", "nosuid", "nodev"}
		if from.option != "" {
			options = append(options, from.option)
		}
		list = []specs.Mount{{Type: from.kind, Source: from.device, Destination: to, Options: options}}
		if info, err := os.Stat(upper); upper != "" && err == nil && info.IsDir() {
			// Without an upper directory an overlay is read-only.
			layers := fmt.Sprintf("lowerdir=%s:%s", upper, filepath.Join(s.root(), to, "etc"))
			list = append(list, specs.Mount{Type: "overlay", Source: "overlay", Destination: to + "/etc", Options: []string{"ro", layers}})
		}
	}
	list = append(list, specs.Mount{Type: "proc", Source: "proc", Destination: to + "/proc", Options: []string{"ro", "nosuid", "noexec", "nodev"}})
	for _, dir := range []string{"/run", "/tmp", "/dev"} {
		list = append(list, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: to + dir, Options: []string{"nosuid", "noexec", "nodev", "mode=755", "size=4m"}})
	}
	for _, name := range []string{"null", "zero", "random", "urandom"} {
		device := "/dev/" + name
		list = append(list, specs.Mount{Type: "bind", Source: device, Destination: to + device, Options: []string{"bind", "nosuid", "noexec"}})
	}
	return list
}
