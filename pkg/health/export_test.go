package health

import "github.com/godbus/dbus/v5"

// Share has questions go through a connection.
func (s *Systemd) Share(conn *dbus.Conn) { s.share(conn) }
