// Command app is the only program of the containers that the tests run: it does what
// its first argument says.
//
//	wait           waits for ever
//	serve ADDR...  answers over HTTP at each address, and says "ready"
//	say N TEXT     says TEXT and exits with status N
//	spam N         says 32 MiB and exits with status N
//	env NAME       says what the environment variable holds
//	fork N         leaves a process behind, in a session of its own, and exits with status N
//	hang           leaves a process behind, says "hanging", and waits, whatever signal comes
//	die N          says "dying", and exits with status N after a second
//	ill            takes the file /healthy away, and well puts it there
//	healthy        exits with status 0 if the file /healthy is there
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch args[0] {
	case "wait":
		time.Sleep(1 << 62)
	case "serve":
		return serve(args[1:])
	case "say":
		fmt.Println(args[2])
		return number(args[1])
	case "spam":
		line := make([]byte, 1<<20)
		for i := range line {
			line[i] = 'x'
		}
		for range 32 {
			_, _ = os.Stdout.Write(line)
		}
		return number(args[1])
	case "env":
		fmt.Println(os.Getenv(args[1]))
		return 1
	case "fork":
		leave()
		return number(args[1])
	case "hang":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		leave()
		fmt.Println("hanging")
		time.Sleep(1 << 62)
	case "die":
		fmt.Println("dying")
		time.Sleep(time.Second)
		return number(args[1])
	case "well":
		if err := os.WriteFile("/healthy", nil, 0o600); err != nil {
			panic(err)
		}
		return 0
	case "ill":
		if err := os.Remove("/healthy"); err != nil {
			panic(err)
		}
		return 0
	case "healthy":
		if _, err := os.Stat("/healthy"); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	return 64
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return n
}

// leave starts a process that nobody waits for and that holds its parent's output.
func leave() {
	cmd := exec.Command("/app", "wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

func serve(addresses []string) int {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "fine") })
	mux.HandleFunc("/made", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, "the database\nis \x1b[31maway")
	})
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/ok", http.StatusFound)
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/silent", func(_ http.ResponseWriter, r *http.Request) {
		fmt.Println("asked")
		<-r.Context().Done()
		fmt.Println("gave up")
	})
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.UserAgent()) })
	errs := make(chan error)
	for _, address := range addresses {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		go func() { errs <- http.Serve(listener, mux) }()
	}
	fmt.Println("ready")
	fmt.Println(<-errs)
	return 1
}
