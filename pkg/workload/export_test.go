package workload

import containerd "github.com/containerd/containerd/v2/client"

// WithTransient makes the reader look for systemd's transient units in another folder.
func (r *Reader) WithTransient(dir string) *Reader {
	r.transient = dir
	return r
}

// Share has questions go through a connection.
func (r *Reader) Share(client *containerd.Client) { r.share(&connection{Client: client}) }
