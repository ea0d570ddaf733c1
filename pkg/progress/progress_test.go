package progress

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReaderCounts(t *testing.T) {
	var events []Event
	c := NewCounter(func(e Event) { events = append(events, e) }, Fetch, 5)
	if _, err := io.Copy(io.Discard, Reader(strings.NewReader("hello"), c.Add)); err != nil {
		t.Fatal(err)
	}
	want := []Event{{Phase: Fetch, Total: 5}, {Phase: Fetch, Done: 5, Total: 5}}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Error(diff)
	}
	Sink(nil).Say(Write, "a nil sink drops events")
}
