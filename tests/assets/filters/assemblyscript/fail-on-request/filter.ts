// Filter fail-on-request aborts when a request asks for it. ../../README.md describes it.
export * from "@solo-io/proxy-runtime/proxy";
import { Context, FilterHeadersStatusValues, registerRootContext, stream_context } from "@solo-io/proxy-runtime";
import { Plugin, Stream } from "../common/filter";

class FailOnRequest extends Plugin {
  constructor(id: u32) {
    super(id, "fail-on-request");
  }

  createContext(id: u32): Context {
    return new FailOnRequestStream(id, this);
  }
}

class FailOnRequestStream extends Stream {
  // Envoy does not show the request's headers to the filter any more when the response comes.
  asked: string = "";

  onRequestHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    this.asked = stream_context.headers.request.get("x-fail");
    this.failIf(this.asked == "request");
    return FilterHeadersStatusValues.Continue;
  }

  onResponseHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    this.failIf(this.asked == "response");
    return super.onResponseHeaders(count, end);
  }

  failIf(asked: bool): void {
    if (asked) {
      throw new Error("the request asked for a failure");
    }
  }
}

registerRootContext((id: u32) => new FailOnRequest(id), "fail-on-request");
