package status

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// askLimit is how long status waits for what only tells of space.
const askLimit = 2 * time.Second

// Space is the data partition's, in bytes, and what containerd has there.
type Space struct {
	Path  string `json:"path"`
	Total uint64 `json:"total"`
	Free  uint64 `json:"free"`
	// Held is nil where containerd was not asked or did not answer.
	Held *Held `json:"held,omitempty"`
}

// Held is what containerd holds, in bytes.
type Held struct {
	// Artifacts is what is kept of OS artifacts: downloads that wait or were broken off.
	Artifacts int64 `json:"artifacts"`
	// Images is the images of workloads as they were fetched, Layers what they are
	// unpacked to.
	Images int64 `json:"images"`
	Layers int64 `json:"layers"`
}

func (shot *Snapshot) space(dir string) {
	if dir == "" {
		return
	}
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.Blocks == 0 {
		shot.complain("the data partition is missing", fmt.Errorf("%s", dir))
		return
	}
	if err != nil {
		shot.complain("the data partition cannot be asked", err)
		return
	}
	shot.Space = &Space{Path: dir, Total: st.Blocks * uint64(st.Bsize), Free: st.Bavail * uint64(st.Bsize)}
}

// held asks containerd, if it has just said which containers there are: one that does not
// answer is waited for once.
func (shot *Snapshot) held(ctx context.Context, s Sources, answers bool) {
	if shot.Space == nil || s.Held == nil || !answers {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	h, err := s.Held(ctx)
	if err != nil {
		shot.complain("what the workloads take is unknown", err)
		return
	}
	shot.Space.Held = &h
}
