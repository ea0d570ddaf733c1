// Package workload reads from containerd which containers there are and what
// they do, and asks those that declare how, for the health gate and for the status.
//
// It looks into all namespaces, since nerdctl, Kubernetes and others each have
// their own, except the one in which osctl keeps its downloads. It refuses to
// change anything: it starts, stops, pulls and deletes nothing. The one thing that it
// does in a container is to run the command that its label osctl.gate.exec names, or
// its health check of nerdctl when nobody else does, and it ends all that this leaves. It knows nerdctl by the labels and files it leaves, not
// by its commands.
//
// It promises to come back: a socket that is missing or refuses is an error at
// once, a daemon that takes a question and does not answer is one after ten
// seconds, or when the context is done, and so is a container that does not answer.
package workload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	_ "github.com/containerd/containerd/api/events" // what Envelope.Field decodes
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/kapernikov/osctl/pkg/health"
)

// limit is how long one question may take.
const limit = 10 * time.Second

// noTask is the status of a container that has not been started since the
// machine booted; containerd itself has no word for it.
const noTask = "no task"

// Reader reads containers. While somebody listens to Changes, everything goes through
// that connection; else each question has one of its own. It is safe for concurrent use.
type Reader struct {
	address   string
	own       string
	transient string // transientUnits; another folder in tests

	mu        sync.Mutex
	listening *connection // that of Changes; nil while nobody listens
}

// connection is one that several use. It is closed when nobody listens any more and all
// have given it back: a probe ends what it started even then.
type connection struct {
	*containerd.Client
	users sync.WaitGroup
}

// New returns a reader of the containerd at address, the path of its gRPC
// socket. own is the namespace of osctl itself, whose contents are not
// workloads; "" leaves out none. Nothing is connected yet.
func New(address, own string) *Reader {
	return &Reader{address: address, own: own, transient: transientUnits}
}

// Ping asks the daemon whether it serves and returns nil if it does.
func (r *Reader) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := through(ctx, r, func(client *containerd.Client) (struct{}, error) { return struct{}{}, ping(ctx, client) })
	return err
}

func ping(ctx context.Context, client *containerd.Client) error {
	serving, err := client.IsServing(ctx)
	if err != nil {
		return fmt.Errorf("asking containerd whether it serves: %w", err)
	}
	if !serving {
		return errors.New("containerd says that it does not serve")
	}
	return nil
}

// List returns the containers of all namespaces but osctl's own, whatever they
// do, in the order of namespace and ID.
func (r *Reader) List(ctx context.Context) ([]health.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return through(ctx, r, func(client *containerd.Client) ([]health.Container, error) { return r.list(ctx, client) })
}

func (r *Reader) list(ctx context.Context, client *containerd.Client) ([]health.Container, error) {
	spaces, err := client.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing containerd's namespaces: %w", err)
	}
	list := []health.Container{}
	for _, space := range spaces {
		if space == r.own {
			continue
		}
		part, err := r.listNamespace(namespaces.WithNamespace(ctx, space), client, space)
		if err != nil {
			return nil, fmt.Errorf("listing the containers of namespace %s: %w", space, err)
		}
		list = append(list, part...)
	}
	slices.SortFunc(list, func(a, b health.Container) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ID, b.ID))
	})
	return list, nil
}

func (r *Reader) listNamespace(ctx context.Context, client *containerd.Client, space string) ([]health.Container, error) {
	records, err := client.ContainerService().List(ctx)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	// One question for all tasks: asking for each would take as many times
	// longer, and containerd passes over a shim that does not answer.
	running, err := client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	alive := map[string]*task.Process{}
	for _, t := range running.Tasks {
		alive[t.ID] = t
	}
	digests := map[string]string{}
	var list []health.Container
	for _, record := range records {
		digest, known := digests[record.Image]
		if !known {
			if digest, err = imageDigest(ctx, client, record.Image); err != nil {
				return nil, err
			}
			digests[record.Image] = digest
		}
		c := health.Container{Workload: r.describe(space, record), Status: noTask}
		c.ImageDigest = digest
		if t, ok := alive[record.ID]; ok {
			c.Status, c.Pid = strings.ToLower(t.Status.String()), t.Pid
		}
		list = append(list, c)
	}
	return list, nil
}

// imageDigest is the digest that the image's name stands for, or "" if there is
// no such name (any more): a container outlives the name of its image.
func imageDigest(ctx context.Context, client *containerd.Client, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	image, err := client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking up image %s: %w", name, err)
	}
	return image.Target.Digest.String(), nil
}

// Changes returns at once with a channel that gets a value when containerd has
// begun to tell of changes, and one after each change of a task, a container or
// an image outside osctl's own namespace; several changes may be one value. It
// is closed when ctx is done or the connection is.
func (r *Reader) Changes(ctx context.Context) <-chan struct{} {
	bell := make(chan struct{}, 1)
	go func() {
		defer close(bell)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		client, err := r.dial(ctx)
		if err != nil {
			return
		}
		shared := &connection{Client: client}
		defer func() {
			r.share(nil) // so that there are no new users
			go func() {
				shared.users.Wait()
				client.Close()
			}()
		}()
		told, errs := client.Subscribe(ctx, topics)
		// containerd does not confirm a subscription. What it answers on the same
		// connection afterwards is the nearest thing to it.
		asking, asked := context.WithTimeout(ctx, limit)
		err = ping(asking, client)
		asked()
		if err != nil {
			return
		}
		r.share(shared)
		bell <- struct{}{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-errs:
				return
			case event := <-told:
				if event.Namespace == r.own && r.own != "" || ofCommand(event) {
					continue
				}
				select {
				case bell <- struct{}{}:
				default:
				}
			}
		}
	}()
	return bell
}

// topics picks the events after which List may return something else. Those of commands in
// containers are not among them: health checks and probes are nothing else.
const topics = `topic~="^/(containers/|images/|tasks/(create|start|oom|exit|delete|paused|resumed)$)"`

// ofCommand reports whether an event tells of the end of a command in a container, which
// has the topic of the end of the container.
func ofCommand(event *events.Envelope) bool {
	if event.Topic != "/tasks/exit" {
		return false
	}
	process, _ := event.Field([]string{"event", "id"})
	container, _ := event.Field([]string{"event", "container_id"})
	return process != container
}

// through asks through the connection of Changes, or through a new one if there is none
// or it does not answer: it may just have ended, which says nothing of containerd.
func through[T any](ctx context.Context, r *Reader, ask func(*containerd.Client) (T, error)) (T, error) {
	if shared := r.borrow(); shared != nil {
		answer, err := ask(shared.Client)
		shared.users.Done()
		if err == nil || ctx.Err() != nil {
			return answer, err
		}
	}
	client, err := r.dial(ctx)
	if err != nil {
		var none T
		return none, err
	}
	defer client.Close()
	return ask(client)
}

func (r *Reader) share(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listening = c
}

// borrow returns the connection of Changes, to be given back (users.Done), or nil.
func (r *Reader) borrow() *connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listening != nil {
		r.listening.users.Add(1)
	}
	return r.listening
}

// connect returns a connection for some questions, and what ends its use.
func (r *Reader) connect(ctx context.Context) (client *containerd.Client, done func(), err error) {
	if shared := r.borrow(); shared != nil {
		return shared.Client, shared.users.Done, nil
	}
	if client, err = r.dial(ctx); err != nil {
		return nil, nil, err
	}
	return client, func() { client.Close() }, nil
}

// dial connects. It tries the socket by itself first: containerd's own dialer
// waits for a socket that does not exist, and gRPC buries the reason.
func (r *Reader) dial(ctx context.Context) (*containerd.Client, error) {
	probe, err := dialUnix(ctx, r.address)
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd: %w", err)
	}
	probe.Close()
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return dialUnix(ctx, r.address)
	})
	client, err := containerd.New(r.address, containerd.WithExtraDialOpts([]grpc.DialOption{dialer}))
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd at %s: %w", r.address, err)
	}
	return client, nil
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}
