package workload

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Space is what containerd holds, in bytes.
type Space struct {
	// Artifacts is content in osctl's own namespace, partial downloads with it.
	Artifacts int64
	// Images is content of all other namespaces; what several of them have counts once.
	Images int64
	// Layers is what images are unpacked to. What containers have written is not in it:
	// containerd would walk through all of their files to tell.
	Layers int64
}

// Space asks how much containerd holds. Everything in the answer is kept in its
// database: it reads no file of a container.
func (r *Reader) Space(ctx context.Context) (Space, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client, err := r.dial(ctx)
	if err != nil {
		return Space{}, err
	}
	defer client.Close() //nolint:errcheck // nothing was changed
	spaces, err := client.NamespaceService().List(ctx)
	if err != nil {
		return Space{}, fmt.Errorf("listing containerd's namespaces: %w", err)
	}
	snapshotters, err := client.IntrospectionService().Plugins(ctx, "type=="+plugins.SnapshotPlugin.String())
	if err != nil {
		return Space{}, fmt.Errorf("listing containerd's snapshotters: %w", err)
	}
	var s Space
	seen := map[digest.Digest]bool{}
	for _, name := range spaces {
		ctx := namespaces.WithNamespace(ctx, name)
		if name == r.own {
			if s.Artifacts, err = artifacts(ctx, client.ContentStore()); err != nil {
				return Space{}, err
			}
			continue
		}
		err := client.ContentStore().Walk(ctx, func(info content.Info) error {
			if !seen[info.Digest] {
				seen[info.Digest] = true
				s.Images += info.Size
			}
			return nil
		})
		if err != nil {
			return Space{}, fmt.Errorf("listing the content of namespace %s: %w", name, err)
		}
		for _, plugin := range snapshotters.Plugins {
			if plugin.InitErr != nil {
				continue
			}
			size, err := layers(ctx, client, plugin.ID)
			if err != nil {
				return Space{}, fmt.Errorf("listing the layers of namespace %s: %w", name, err)
			}
			s.Layers += size
		}
	}
	return s, nil
}

// artifacts sums up content and what is there of partial downloads.
func artifacts(ctx context.Context, store content.Store) (sum int64, err error) {
	err = store.Walk(ctx, func(info content.Info) error { sum += info.Size; return nil })
	if err != nil {
		return 0, fmt.Errorf("listing osctl's content: %w", err)
	}
	partial, err := store.ListStatuses(ctx)
	if err != nil {
		return 0, fmt.Errorf("listing osctl's downloads: %w", err)
	}
	for _, p := range partial {
		sum += p.Offset
	}
	return sum, nil
}

// layers sums up the committed snapshots, whose sizes the snapshotter has noted.
func layers(ctx context.Context, client *containerd.Client, snapshotter string) (sum int64, err error) {
	service := client.SnapshotService(snapshotter)
	var names []string
	err = service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			names = append(names, info.Name)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		usage, err := service.Usage(ctx, name)
		if errdefs.IsNotFound(err) {
			continue // it went meanwhile
		}
		if err != nil {
			return 0, err
		}
		sum += usage.Size
	}
	return sum, nil
}
