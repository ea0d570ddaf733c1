package lease

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/device"
)

// errGone says that neither containerd nor a lease knows the image.
var errGone = errors.New("it is gone")

// image is a name and what it led to.
type image struct {
	name   string
	target ocispec.Descriptor
}

// label is the image as the label of a lease has it. A name has no blanks.
func (i image) label() string {
	return fmt.Sprintf("%s %d %s %s", i.target.Digest, i.target.Size, i.target.MediaType, i.name)
}

// imagesOf reads the labels of a lease. What it cannot read was not written by this
// osctl, and is held all the same.
func imagesOf(l leases.Lease) []image {
	var list []image
	for key, text := range l.Labels {
		if !strings.HasPrefix(key, imageLabel) {
			continue
		}
		words := strings.Fields(text)
		if len(words) != 4 {
			continue
		}
		size, err := strconv.ParseInt(words[1], 10, 64)
		id, wrong := digest.Parse(words[0])
		if err != nil || wrong != nil {
			continue
		}
		list = append(list, image{words[3], ocispec.Descriptor{Digest: id, Size: size, MediaType: words[2]}})
	}
	return list
}

// find is what a name leads to; if it leads nowhere any more, what is held under it: for
// this slot, or else for the other.
func (s *space) find(name string, slot device.Slot) (image, error) {
	record, err := s.client.ImageService().Get(s.ctx, name)
	if err == nil {
		return image{name, ocispec.Descriptor{Digest: record.Target.Digest, Size: record.Target.Size, MediaType: record.Target.MediaType}}, nil
	}
	if !errdefs.IsNotFound(err) {
		return image{}, fmt.Errorf("looking up image %s: %w", name, err)
	}
	for _, of := range []device.Slot{slot, ""} {
		for _, img := range s.held(of) {
			if img.name == name && s.there(img) == nil {
				return img, nil
			}
		}
	}
	return image{}, errGone
}

// there reports whether containerd has the image's manifest.
func (s *space) there(img image) error {
	_, err := s.client.ContentStore().Info(s.ctx, img.target.Digest)
	if errdefs.IsNotFound(err) {
		return errGone
	}
	return err
}

// Restore gives the images that are held for a slot their names back, where the name
// leads nowhere. A name that leads elsewhere was given by somebody and stays; the image
// then gets the name that only it can have, of its repository and its digest.
func (k Keeper) Restore(ctx context.Context, slot device.Slot) error {
	err := k.each(ctx, func(s *space) error {
		var all []error
		for _, img := range s.held(slot) {
			all = append(all, s.restore(slot, img))
		}
		return errors.Join(all...)
	})
	if err != nil {
		return fmt.Errorf("giving slot %s its images back: %w: %w", slot, ErrHold, err)
	}
	return nil
}

func (s *space) restore(slot device.Slot, img image) error {
	if err := s.there(img); err != nil {
		s.log.Warn("an image that a rollback needs is lost", "slot", slot, "namespace", s.name, "image", img.name, "digest", img.target.Digest, "reason", err)
		return nil
	}
	for _, name := range []string{img.name, img.own()} {
		_, err := s.client.ImageService().Create(s.ctx, images.Image{Name: name, Target: img.target})
		if err == nil {
			s.log.Info("an image has its name again", "slot", slot, "namespace", s.name, "image", name, "digest", img.target.Digest)
			return nil
		}
		if !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("naming image %s: %w", name, err)
		}
		record, err := s.client.ImageService().Get(s.ctx, name)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("looking up image %s: %w", name, err)
		}
		if err == nil && record.Target.Digest == img.target.Digest {
			return nil
		}
	}
	return nil
}

// own is the name of the image's repository with its digest.
func (i image) own() string {
	name, _, _ := strings.Cut(i.name, "@")
	if colon := strings.LastIndex(name, ":"); colon > strings.LastIndex(name, "/") {
		name = name[:colon]
	}
	return name + "@" + i.target.Digest.String()
}
