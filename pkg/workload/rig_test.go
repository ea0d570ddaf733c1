package workload_test

import (
	"bufio"
	"io"
	"maps"
	"path/filepath"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/test/daemon"
)

// rig is a real containerd and what the tests do to it.
type rig struct {
	t      *testing.T
	daemon *daemon.Daemon
	client *containerd.Client
	rootfs string
}

// newRig starts a containerd with a root file system of package app.
func newRig(t *testing.T, rootfs string) *rig {
	t.Helper()
	d := daemon.Start(t)
	r := &rig{t: t, daemon: d, client: d.Client(t), rootfs: rootfs}
	for _, space := range []string{"one", "two", "own"} {
		if err := r.client.NamespaceService().Create(t.Context(), space, nil); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// image gives a name in a namespace a target.
func (r *rig) image(space, name, content string) {
	r.t.Helper()
	_, err := r.client.ImageService().Create(namespaces.WithNamespace(r.t.Context(), space), images.Image{
		Name:   name,
		Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(content), Size: int64(len(content))},
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// run makes a container that waits and starts it.
func (r *rig) run(space, id, image string, labels map[string]string) {
	r.t.Helper()
	r.start(space, id, labels, containerd.WithImageName(image), r.spec(space, id, "wait"))
}

// spec is that of a container that runs app with the given arguments.
func (r *rig) spec(space, id string, args ...string) containerd.NewContainerOpts {
	return r.specWith(space, id, args)
}

func (r *rig) specWith(space, id string, args []string, more ...oci.SpecOpts) containerd.NewContainerOpts {
	return containerd.WithNewSpec(append([]oci.SpecOpts{
		oci.WithRootFSPath(r.rootfs), oci.WithRootFSReadonly(), oci.WithProcessArgs(append([]string{"/app"}, args...)...),
		// The default, /namespace/id, leaves an empty group behind.
		oci.WithCgroup("/osctl-test-" + space + "-" + id),
	}, more...)...)
}

// start makes a container, starts it, and returns what it says.
func (r *rig) start(space, id string, labels map[string]string, opts ...containerd.NewContainerOpts) *bufio.Scanner {
	r.t.Helper()
	ctx := namespaces.WithNamespace(r.t.Context(), space)
	c, err := r.client.NewContainer(ctx, id, append([]containerd.NewContainerOpts{r.daemon.Runtime()}, opts...)...)
	if err != nil {
		r.t.Fatalf("making container %s/%s: %v", space, id, err)
	}
	out, in := io.Pipe()
	task, err := c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, in, in), cio.WithFIFODir(filepath.Join(r.daemon.Root, "fifo"))))
	if err != nil {
		r.t.Fatalf("making the task of %s/%s: %v", space, id, err)
	}
	if err := task.Start(ctx); err != nil {
		r.t.Fatalf("starting %s/%s: %v", space, id, err)
	}
	// Not earlier: the restart monitor would take the task that is only created
	// for a dead one and start its own.
	if len(labels) > 0 {
		if _, err := c.SetLabels(ctx, labels); err != nil {
			r.t.Fatalf("labelling %s/%s: %v", space, id, err)
		}
	}
	return bufio.NewScanner(out)
}

// declare gives a container labels.
func (r *rig) declare(space, id string, d health.Declaration) {
	r.t.Helper()
	ctx := namespaces.WithNamespace(r.t.Context(), space)
	c, err := r.client.LoadContainer(ctx, id)
	if err != nil {
		r.t.Fatal(err)
	}
	labels := map[string]string{
		"osctl.gate": string(d.Level), "osctl.gate.timeout": d.Timeout.String(),
		"osctl.gate.http": d.HTTP, "osctl.gate.tcp": d.TCP, "osctl.gate.exec": d.Exec,
	}
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" || value == "0s" })
	if _, err := c.SetLabels(ctx, labels); err != nil {
		r.t.Fatal(err)
	}
}

// kill ends a container's process and waits for that.
func (r *rig) kill(space, id string) {
	r.t.Helper()
	ctx := namespaces.WithNamespace(r.t.Context(), space)
	c, err := r.client.LoadContainer(ctx, id)
	if err != nil {
		r.t.Fatal(err)
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	<-exited
}
