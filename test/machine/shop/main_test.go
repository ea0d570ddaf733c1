package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOrders(t *testing.T) {
	dir := t.TempDir()
	file, release := filepath.Join(dir, "orders"), filepath.Join(dir, "os-release")
	if o, err := orders(file, release, "db"); o != (order{}) || err != nil {
		t.Errorf("without orders: %+v, %v", o, err)
	}
	text := "1.1 db crash 20s\n1.1 web late 15s\n\n1.2 db mute\n* old mute\n"
	for name, data := range map[string]string{file: text, release: "ID=x\nIMAGE_VERSION=1.1\n"} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]order{"db": {crash: 20 * time.Second}, "web": {late: 15 * time.Second}, "old": {mute: true}, "other": {}} {
		if o, err := orders(file, release, name); o != want || err != nil {
			t.Errorf("orders of %s: %+v, %v; want %+v", name, o, err, want)
		}
	}
	for _, bad := range []string{"* db crash", "* db sing"} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := orders(file, release, "db"); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("order %q: %v", bad, err)
		}
	}
}

// A service that is told to crash does, and keeps that it was started.
func TestCrash(t *testing.T) {
	s := &service{data: t.TempDir(), name: "db"}
	for range 2 {
		if err := s.work(context.Background(), order{crash: time.Nanosecond, mute: true}, ""); err == nil || err.Error() != "crashed, as ordered" {
			t.Errorf("it ended with %v", err)
		}
	}
	if info, err := os.Stat(filepath.Join(s.data, "db.starts")); err != nil || info.Size() != 2 {
		t.Errorf("starts: %v, %v", info, err)
	}
}
